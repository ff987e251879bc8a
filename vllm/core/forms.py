"""Requests that wait for the grammar of their form."""

from __future__ import annotations

from typing import Final

from vllm.core.lifecycle import Lifecycle
from vllm.core.request import Request, Status
from vllm.core.step import Step
from vllm.messages.engine import FinishReason, RequestUpdate
from vllm.structured_output.compiler import GrammarCompiler, NoGrammars, PendingGrammar
from vllm.structured_output.grammar import BackendError, Grammar, GrammarError

_POLL_S: Final = 0.05


class CompiledForms:
    """A pass: requests whose grammar is compiled join the queue, others end without one."""

    def __init__(
        self,
        lifecycle: Lifecycle,
        grammars: GrammarCompiler | NoGrammars,
        is_one_of_several: bool = False,
    ) -> None:
        """`is_one_of_several`: other schedulers must plan the same, so that a step waits for every
        form; compiling ends at other times elsewhere."""
        self._lifecycle = lifecycle
        self._grammars = grammars
        self._waits = is_one_of_several

    def plan(self, step: Step) -> None:
        lifecycle = self._lifecycle
        if not lifecycle.compiling:
            return
        for request, pending in list(lifecycle.compiling.items()):
            try:
                request.grammar = self._poll(pending)
            except (GrammarError, BackendError) as error:
                lifecycle.add_update(end_without_form(lifecycle, request, error))
                continue
            if request.grammar is not None:
                del lifecycle.compiling[request]
                request.status = Status.WAITING
                lifecycle.waiting.push(request)

    def _poll(self, pending: PendingGrammar) -> Grammar | None:
        grammar = pending.poll()
        while grammar is None and self._waits:
            self._grammars.wait([pending], _POLL_S)
            grammar = pending.poll()
        return grammar


def end_without_form(
    lifecycle: Lifecycle, request: Request, error: GrammarError | BackendError
) -> RequestUpdate:
    """End a request that cannot be held to its form. The error names what the user asked for."""
    form = request.params.structured_outputs
    assert form is not None, request.id
    is_refused = isinstance(error, GrammarError)
    reason = FinishReason.REJECTED if is_refused else FinishReason.ERROR
    return lifecycle.fail(request, f"{form.asked_as}: {error}", reason)
