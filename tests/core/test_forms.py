"""When requests with a form are planned."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future
from typing import Any

import pytest

from tests.core.conftest import Engine
from vllm.sampling_params import StructuredOutputsParams
from vllm.structured_output.compiler import PendingGrammar
from vllm.structured_output.grammar import MaskRow


class AnyToken:
    """A compiled form and its grammar, which allow everything."""

    finished = False
    restricts = True

    def start(self) -> AnyToken:
        return self

    def fill_mask(self, out: MaskRow) -> None:
        out.fill(-1)

    def accept(self, token_id: int) -> bool:
        return True

    def rollback(self, num_tokens: int) -> None:
        pass


class Slow:
    """A compiler whose forms are ready when they were waited for twice."""

    mask_words = 4

    def __init__(self) -> None:
        self.future: Future[Any] = Future()
        self.num_waits = 0

    def submit(self, params: StructuredOutputsParams) -> PendingGrammar:
        return PendingGrammar(self, params, self.mask_words)

    def poll(self) -> Any:
        return self.future.result() if self.future.done() else None

    def wait(self, pending: Iterable[PendingGrammar], timeout_s: float) -> None:
        self.num_waits += 1
        if self.num_waits == 2:
            self.future.set_result(AnyToken())

    def stop(self) -> None:
        pass


@pytest.mark.parametrize("is_one_of_several", [False, True])
def test_one_of_several_schedulers_waits_for_forms_and_one_alone_goes_on(
    is_one_of_several: bool,
) -> None:
    """Compiling ends at other times in other processes."""
    compiler = Slow()
    engine = Engine(grammars=compiler, is_externally_launched=is_one_of_several)
    engine.add("formed", [3, 4], structured_outputs=StructuredOutputsParams(regex="a"))
    engine.add("free", [5, 6])
    plan = engine.scheduler.schedule()
    assert plan is not None
    assert plan.num_rows == (2 if is_one_of_several else 1)
    assert compiler.num_waits == (2 if is_one_of_several else 0)
