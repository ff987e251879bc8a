"""Requests that wait for the grammar of their form."""

from __future__ import annotations

from vllm.core.lifecycle import Lifecycle
from vllm.core.request import Request, Status
from vllm.core.step import Step
from vllm.messages.engine import FinishReason, RequestUpdate
from vllm.structured_output.grammar import BackendError, GrammarError


class CompiledForms:
    """A pass: requests whose grammar is compiled join the queue, others end without one."""

    def __init__(self, lifecycle: Lifecycle) -> None:
        self._lifecycle = lifecycle

    def plan(self, step: Step) -> None:
        lifecycle = self._lifecycle
        if not lifecycle.compiling:
            return
        for request, pending in list(lifecycle.compiling.items()):
            try:
                request.grammar = pending.poll()
            except (GrammarError, BackendError) as error:
                lifecycle.add_update(end_without_form(lifecycle, request, error))
                continue
            if request.grammar is not None:
                del lifecycle.compiling[request]
                request.status = Status.WAITING
                lifecycle.waiting.push(request)


def end_without_form(
    lifecycle: Lifecycle, request: Request, error: GrammarError | BackendError
) -> RequestUpdate:
    """End a request that cannot be held to its form. The error names what the user asked for."""
    form = request.params.structured_outputs
    assert form is not None, request.id
    is_refused = isinstance(error, GrammarError)
    reason = FinishReason.REJECTED if is_refused else FinishReason.ERROR
    return lifecycle.fail(request, f"{form.asked_as}: {error}", reason)
