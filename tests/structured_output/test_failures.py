"""A form can make its library fail in any way; only its own request ends."""

from __future__ import annotations

import logging
from concurrent.futures import CancelledError, Future
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from tests.core.conftest import Engine, expected
from tests.structured_output.conftest import EOS, can_be_whole, ready
from vllm.config.structured import StructuredOutputsConfig
from vllm.messages.engine import FinishReason
from vllm.sampling_params import StructuredOutputsParams
from vllm.structured_output.compiler import GrammarCompiler, PendingGrammar
from vllm.structured_output.grammar import (
    BackendError,
    CompiledGrammar,
    Grammar,
    GrammarError,
    MaskRow,
)

FORM = StructuredOutputsParams(regex="a")


class Panic(BaseException):
    """As libraries in Rust raise them: no Exception."""


FAILURES: list[BaseException] = [
    RuntimeError("inside"),
    KeyError("name"),
    RecursionError(),
    MemoryError(),
    Panic("unwrap"),
    CancelledError(),
]


class Done:
    """A form that has been compiled, or failed to be."""

    def __init__(self) -> None:
        self.future: Future[CompiledGrammar] = Future()

    def poll(self) -> CompiledGrammar | None:
        return self.future.result()


class Fragile:
    """A form and its grammar, one method of which fails."""

    finished = False
    restricts = True

    def __init__(self, where: str, failure: BaseException) -> None:
        self._where = where
        self._failure = failure
        self._num_masks = 0

    def _fail(self, where: str) -> None:
        if where == self._where:
            raise self._failure

    def start(self) -> Grammar:
        self._fail("start")
        return self

    def fill_mask(self, out: MaskRow) -> None:
        self._num_masks += 1
        self._fail("first mask" if self._num_masks == 1 else "later mask")
        out.fill(1)

    def accept(self, token_id: int) -> bool:
        self._fail("accept")
        return True


def pending(where: str, failure: BaseException) -> PendingGrammar:
    done = Done()
    if where == "compile":
        done.future.set_exception(failure)
    else:
        done.future.set_result(Fragile(where, failure))
    return PendingGrammar(done, FORM, mask_words=1)


@pytest.mark.parametrize("failure", FAILURES, ids=repr)
@pytest.mark.parametrize("where", ["compile", "start", "first mask"])
def test_a_failure_while_a_grammar_is_made_is_told_as_one(
    where: str, failure: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR), pytest.raises(BackendError, match=type(failure).__name__):
        pending(where, failure).poll()
    assert caplog.records[0].exc_info is not None


@pytest.mark.parametrize("failure", FAILURES, ids=repr)
def test_a_failure_while_a_grammar_is_used_comes_with_its_next_token(
    failure: BaseException,
) -> None:
    mask = np.zeros(1, np.int32)
    for where in ("later mask", "accept"):
        grammar = pending(where, failure).poll()
        assert grammar is not None
        grammar.fill_mask(mask)  # the plan holds other rows too
        with pytest.raises(BackendError, match=type(failure).__name__):
            grammar.accept(5)


class DeadEnd(Fragile):
    """Of which the second token leads nowhere."""

    def fill_mask(self, out: MaskRow) -> None:
        super().fill_mask(out)
        if self._num_masks > 1:
            out.fill(0)


def test_a_dead_end_is_an_error_and_no_draw_of_anything() -> None:
    done = Done()
    done.future.set_result(DeadEnd("", AssertionError()))
    grammar = PendingGrammar(done, FORM, mask_words=1).poll()
    assert grammar is not None
    mask = np.zeros(1, np.int32)
    grammar.fill_mask(mask)
    assert mask.any()  # what is drawn from it is refused
    with pytest.raises(GrammarError, match="nothing that could come next"):
        grammar.accept(5)


def test_an_interrupt_is_no_failure_of_a_form() -> None:
    with pytest.raises(KeyboardInterrupt):
        pending("start", KeyboardInterrupt()).poll()


def test_what_a_library_says_of_a_form_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(GrammarError, match="as it is"):
        pending("accept", GrammarError("as it is")).poll().accept(5)  # type: ignore[union-attr]
    assert not caplog.records


def test_the_scheduler_ends_the_request_of_a_failing_form_and_no_other() -> None:
    def load_tokenizer() -> PreTrainedTokenizerBase:
        raise Panic("no tokenizer")

    compiler = GrammarCompiler(StructuredOutputsConfig(), 64, {EOS}, load_tokenizer)
    engine = Engine(grammars=compiler)
    engine.add("formed", [3, 4], structured_outputs=FORM)
    engine.add("free", [3, 4], max_tokens=4)
    engine.scheduler.wait_compiled(10.0)
    engine.run()
    compiler.stop()
    assert engine.reasons["formed"] is FinishReason.ERROR
    assert engine.outputs["free"] == expected([3, 4], 4)


def _chain(num_rules: int, rule: str, last: str) -> str:
    rules = [rule.format(i, i + 1) for i in range(num_rules)]
    return "\n".join([*rules, last.format(num_rules)])


def _deep_references() -> dict[str, Any]:
    parts: dict[str, Any] = {f"a{i}": {"$ref": f"#/$defs/a{i + 1}"} for i in range(3000)}
    parts["a3000"] = {"type": "integer"}
    return {"json": {"$ref": "#/$defs/a0", "$defs": parts}, "backend": "guidance"}


# Each needs more stack than the 8 MiB that a thread usually has.
DEEP: list[tuple[dict[str, Any], str]] = [
    (_deep_references(), "5"),
    ({"json": {"type": "string", "pattern": "(" * 60_000 + "a" + ")" * 60_000}}, '"a"'),
    ({"grammar": "start: a0\n" + _chain(7000, "a{}: a{}", 'a{}: "x"')}, "x"),
    ({"grammar": "start: A0\n" + _chain(7000, "A{}: A{}", 'A{}: "x"')}, "x"),
]


@pytest.mark.parametrize(
    ("form", "text"), DEEP, ids=["references", "pattern", "rules", "terminals"]
)
def test_a_deep_form_does_not_overflow_the_stack(
    form: dict[str, Any], text: str, compiler: GrammarCompiler, tokenizer: PreTrainedTokenizerBase
) -> None:
    grammar = ready(compiler.submit(StructuredOutputsParams(**form)))
    assert can_be_whole(text, grammar, tokenizer)
