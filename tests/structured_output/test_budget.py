"""A form is limited by what it costs itself; what else the machine does is not counted."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest
from transformers import PreTrainedTokenizerBase

from tests.limits import HANG_S, wait_until
from tests.structured_output.conftest import EOS, ready
from tests.structured_output.test_failures import Fragile
from vllm.config.structured import StructuredOutputsConfig
from vllm.sampling_params import StructuredOutputsParams
from vllm.structured_output import compiler as compiler_module
from vllm.structured_output.compiler import GrammarCompiler, PendingGrammar
from vllm.structured_output.grammar import BackendError, CompiledGrammar, GrammarError
from vllm.structured_output.threads import MAX_GIVEN_UP, Job, Meter, Threads

BUDGET_S = 0.05


def spin(until: threading.Event) -> None:
    while not until.is_set():
        pass


class Fake:
    """A backend that does what a form's text says until it is let go."""

    def __init__(self, name: str, spins: bool = True) -> None:
        self.name = name
        self.let_go = threading.Event()
        self.begun: dict[str, threading.Event] = {}
        self._spins = spins

    def rejects(self, params: StructuredOutputsParams) -> str | None:
        return "x" if params.spec == "rejected" else None

    def compile(self, params: StructuredOutputsParams) -> CompiledGrammar:
        self.begun.setdefault(params.spec, threading.Event()).set()
        if params.spec.startswith("busy") and self._spins:
            spin(self.let_go)
        elif params.spec.startswith("waiting"):
            assert self.let_go.wait(HANG_S)
        return Fragile("", AssertionError())


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Fake]]:
    made = {"xgrammar": Fake("xgrammar"), "guidance": Fake("guidance", spins=False)}
    makers = {name: lambda *_, fake=fake: fake for name, fake in made.items()}
    monkeypatch.setattr(compiler_module, "MAKERS", makers)
    yield made
    for fake in made.values():
        fake.let_go.set()


@pytest.fixture
def compiler(
    fakes: dict[str, Fake], tokenizer: PreTrainedTokenizerBase
) -> Iterator[GrammarCompiler]:
    compiler = GrammarCompiler(
        StructuredOutputsConfig(), 64, {EOS}, lambda: tokenizer, budget_s=BUDGET_S
    )
    yield compiler
    compiler.stop()


def form(text: str, backend: str = "xgrammar") -> StructuredOutputsParams:
    return StructuredOutputsParams(regex=text, backend=backend)


def refused(pending: PendingGrammar) -> str:
    with pytest.raises(GrammarError) as caught:
        ready(pending)
    return str(caught.value)


def test_a_meter_counts_what_its_thread_computes_and_not_what_it_waits_for() -> None:
    meter, go = Meter(), threading.Event()
    assert meter.spent_s() == 0.0
    meter.start()
    before_s = time.thread_time()
    go.wait(2 * BUDGET_S)
    waited_s = meter.spent_s()
    while time.thread_time() < before_s + BUDGET_S:
        pass
    assert waited_s < BUDGET_S <= meter.spent_s()


def test_a_form_that_waits_is_not_refused_however_long(
    compiler: GrammarCompiler, fakes: dict[str, Fake]
) -> None:
    pending = [compiler.submit(form(f"waiting{i}")) for i in range(5)]  # more than threads
    until_s = time.monotonic() + 4 * BUDGET_S
    while time.monotonic() < until_s:
        assert all(one.poll() is None for one in pending)
    fakes["xgrammar"].let_go.set()
    assert all(ready(one) for one in pending)


def test_the_load_of_a_backend_is_no_cost_of_a_form(
    monkeypatch: pytest.MonkeyPatch, compiler: GrammarCompiler, fakes: dict[str, Fake]
) -> None:
    def make(*_: object) -> Fake:
        before_s = time.thread_time()
        while time.thread_time() < before_s + 3 * BUDGET_S:
            pass
        return fakes["xgrammar"]

    monkeypatch.setattr(compiler_module, "MAKERS", {"xgrammar": make})
    assert ready(compiler.submit(form("quick")))


def test_a_form_that_costs_too_much_is_refused_and_others_go_on(
    compiler: GrammarCompiler, fakes: dict[str, Fake]
) -> None:
    costs = [compiler.submit(form(f"busy{i}")) for i in range(3)]  # more than threads
    for one in costs:
        assert "more than 0.05 seconds of a processor" in refused(one)
    assert ready(compiler.submit(form("quick")))
    # Asked for again it is known, and not begun again.
    begun = fakes["xgrammar"].begun
    begun.clear()
    assert "xgrammar takes more than" in refused(compiler.submit(form("busy0")))
    assert not begun
    fakes["xgrammar"].let_go.set()
    wait_until(lambda: compiles(compiler, form("busy0")))


def compiles(compiler: GrammarCompiler, params: StructuredOutputsParams) -> bool:
    try:
        return compiler.submit(params).poll() is not None
    except GrammarError:
        return False


def test_what_costs_one_backend_too_much_is_given_to_the_next(
    compiler: GrammarCompiler, fakes: dict[str, Fake]
) -> None:
    assert ready(compiler.submit(form("busy", "auto")))
    assert set(fakes["guidance"].begun) == {"busy"}


def costly(job_of: Callable[[], Job[None]], let_go: threading.Event) -> None:
    """A call that costs more than its budget and then waits."""
    before_s = time.thread_time()
    job_of().meter.start()
    while time.thread_time() < before_s + 2 * BUDGET_S:
        pass
    assert let_go.wait(HANG_S)


def test_threads_that_are_given_up_are_replaced_but_are_few() -> None:
    threads, let_go = Threads(1, "test-few", BUDGET_S), threading.Event()
    jobs: list[Job[None]] = []
    for number in range(MAX_GIVEN_UP + 1):
        added = threading.Event()

        def call(number: int = number, added: threading.Event = added) -> None:
            assert added.wait(HANG_S)
            costly(lambda: jobs[number], let_go)

        jobs.append(threads.submit(call))
        added.set()
        while not jobs[-1].is_over_budget:
            threads.tend()
    behind = threads.submit(lambda: 5)
    assert [job.is_given_up for job in jobs] == [True] * MAX_GIVEN_UP + [False]
    assert not behind.future.done()
    let_go.set()
    assert behind.future.result(HANG_S) == 5
    wait_until(lambda: sum(t.name == "test-few" for t in threading.enumerate()) == 1)
    threads.stop()
    wait_until(lambda: all(t.name != "test-few" for t in threading.enumerate()))


def test_what_nobody_waits_for_any_more_is_given_up_as_well(
    compiler: GrammarCompiler, fakes: dict[str, Fake]
) -> None:
    for number in range(3):
        compiler.submit(form(f"busy{number}"))  # and never asked for
    assert ready(compiler.submit(form("quick")))


@pytest.mark.parametrize(("backend", "usable"), [("guidance", False), ("auto", True)])
def test_a_backend_that_does_not_work_is_told_as_one(
    backend: str,
    usable: bool,
    monkeypatch: pytest.MonkeyPatch,
    compiler: GrammarCompiler,
    fakes: dict[str, Fake],
) -> None:
    def broken(*_: object) -> Fake:
        raise ValueError("it cannot read this")

    makers = {"xgrammar": lambda *_: fakes["xgrammar"], "guidance": broken}
    monkeypatch.setattr(compiler_module, "MAKERS", makers)
    if usable:
        assert ready(compiler.submit(form("quick", backend)))
    text = "rejected" if usable else "quick"
    with pytest.raises(BackendError, match=r"guidance cannot .* tokenizer: it cannot read this"):
        ready(compiler.submit(form(text, backend)))


def test_without_any_backend_the_next_form_tries_again(
    monkeypatch: pytest.MonkeyPatch, compiler: GrammarCompiler, fakes: dict[str, Fake]
) -> None:
    def broken(*_: object) -> Fake:
        raise MemoryError("for now")

    with monkeypatch.context() as patch:
        patch.setattr(compiler_module, "MAKERS", {"xgrammar": broken})
        with pytest.raises(BackendError, match="for now"):
            ready(compiler.submit(form("quick")))
    assert ready(compiler.submit(form("quick")))
