"""Whatever happens to a rank: users get an error that names it, and nothing stays behind."""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import signal
import uuid
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine_e2e.faulty_worker import FAULT, fault, faulty_core, faulty_executor
from tests.limits import until, wait_until
from tests.ops.overrides import isas
from vllm import LLM, AsyncEngineArgs, SamplingParams
from vllm.config.vllm import VllmConfig
from vllm.engine.async_llm import AsyncLLM
from vllm.engine.client import ProcessClient
from vllm.errors import EngineDeadError
from vllm.executor.base import ExecutorDied

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(not isas(), reason="ranks compute together in kernels, not built here"),
]

MARK = "TEST_FAULT_MARK"
SAID = {"SIGKILL": "was killed by SIGKILL", "SIGSTOP": "was stopped by a signal"}
DOING = {
    "loading": r"loading the model",
    "warm-up": r"warming up",
    "step": r"in step \d+",
    "idle": r"idle",
}
BUSY = [phase for phase in DOING if phase != "idle"]
IN_A_CORE = {
    (0, "SIGSTOP", "loading"),
    (1, "SIGKILL", "warm-up"),
    (1, "SIGSTOP", "step"),
    (0, "SIGKILL", "step"),
    (0, "SIGSTOP", "idle"),
}
IN_THIS_PROCESS = {(1, "SIGKILL", "loading"), (0, "SIGSTOP", "warm-up"), (1, "SIGSTOP", "step")}


def cases(some: Collection[tuple[int, str, str]], phases: Collection[str]) -> list[Any]:
    """Every rank, signal and phase, of which all but `some` are left to the full product."""
    return [
        pytest.param(*case, marks=[] if case in some else [pytest.mark.product])
        for case in itertools.product([0, 1], SAID, phases)
    ]


def arguments(path: Path, **options: Any) -> dict[str, Any]:
    return {
        "model": str(path),
        "tensor_parallel_size": 2,
        "dtype": "float32",
        "max_model_len": 256,
        "max_num_seqs": 4,
        "num_gpu_blocks_override": 80,
        "use_tqdm_on_load": False,
        **options,
    }


@pytest.fixture
def config(tiny_story: Path) -> VllmConfig:
    return AsyncEngineArgs(**arguments(tiny_story)).create_engine_config()


@pytest.fixture(autouse=True)
def mark(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """In the environment of every process that the test starts; none may be left in the end."""
    mark = uuid.uuid4().hex
    monkeypatch.setenv(MARK, mark)
    memory = memory_files()
    yield mark
    wait_until(lambda: not marked(mark), "the end of all processes")
    assert memory_files() <= memory


def marked(mark: str) -> list[int]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            is_ours = mark.encode() in (process / "environ").read_bytes()
            command = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if is_ours and b"resource_tracker" not in command:
            found.append(int(process.name))
    return sorted(found)


def memory_files() -> set[str]:
    """Those that this process holds, by descriptor."""
    found = set()
    for fd in Path("/proc/self/fd").iterdir():
        try:
            target = os.readlink(fd)
        except OSError:
            continue
        if target.startswith("/memfd:vllm"):
            found.add(f"{fd.name} {target}")
    return found


def message(rank: int, what: str, phase: str) -> str:
    return rf"rank {rank} \(process \d+\) {SAID[what]}.* It was {DOING[phase]}"


async def answers(engine: AsyncLLM, number: int) -> str:
    """The error that ends a request."""
    params = SamplingParams(max_tokens=200, ignore_eos=True)
    with pytest.raises(EngineDeadError) as caught:
        async for _ in engine.generate("Once upon a time", params, f"request {number}"):
            pass
    return str(caught.value)


@pytest.mark.parametrize(("rank", "what", "phase"), cases(IN_A_CORE, DOING))
async def test_a_fault_of_a_rank_ends_every_request_with_its_name(
    rank: int,
    what: str,
    phase: str,
    config: VllmConfig,
    mark: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = message(rank, what, phase)
    monkeypatch.setenv(FAULT, fault(rank, phase, what))
    if phase in ("loading", "warm-up"):
        with pytest.raises(EngineDeadError, match=expected):
            ProcessClient(config, faulty_core)
        return
    await assert_ended(config, rank, what, phase, mark)


@pytest.mark.parametrize(
    ("stage", "what", "phase"),
    cases({(0, "SIGSTOP", "step"), (1, "SIGKILL", "idle")}, ("step", "idle")),
)
async def test_a_fault_of_a_stage_ends_every_request_with_its_name(
    stage: int,
    what: str,
    phase: str,
    tiny_story: Path,
    mark: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(FAULT, fault(stage, phase, what))
    options = arguments(tiny_story, tensor_parallel_size=1, pipeline_parallel_size=2)
    config = AsyncEngineArgs(**options).create_engine_config()
    await assert_ended(config, stage, what, phase, mark)


async def assert_ended(config: VllmConfig, rank: int, what: str, phase: str, mark: str) -> None:
    """Of an engine of two ranks, of which one meets a fault in a step as set up, or idle."""
    expected = message(rank, what, phase)
    client = ProcessClient(config, faulty_core)
    engine = AsyncLLM.from_client(config, client)
    try:
        await engine.check_health()
        if phase == "idle":
            ranks = [pid for pid in marked(mark) if pid != client.pid]
            os.kill(ranks[rank], signal.Signals[what])
            await until(lambda: not engine.is_running, "the news")
        # The first ones run when it happens; of the fourth and fifth none has begun.
        errors = await asyncio.gather(*(answers(engine, number) for number in range(6)))
        assert all(re.search(expected, error) for error in errors), errors
        with pytest.raises(EngineDeadError, match=expected):
            await engine.check_health()
        await until(lambda: not marked(mark), "the end of all processes, without a shutdown")
    finally:
        engine.shutdown()


@pytest.mark.parametrize(("rank", "what", "phase"), cases(IN_THIS_PROCESS, BUSY))
def test_an_engine_in_this_process_leaves_nothing_behind(
    rank: int,
    what: str,
    phase: str,
    tiny_story: Path,
    mark: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(FAULT, fault(rank, phase, what))
    monkeypatch.setattr("vllm.engine.core.make_executor", faulty_executor)
    monkeypatch.setattr("vllm.executor.silence.STOPPED_S", 1.0)  # this process is the engine's
    expected, memory = message(rank, what, phase), memory_files()
    if phase in ("loading", "warm-up"):
        with pytest.raises(ExecutorDied, match=expected):
            LLM(**arguments(tiny_story))
        return
    llm = LLM(**arguments(tiny_story))
    for _ in range(2):
        with pytest.raises(EngineDeadError, match=expected):
            llm.generate(["Once upon a time"] * 3, SamplingParams(max_tokens=50, ignore_eos=True))
    assert not marked(mark) and memory_files() == memory, "before anybody shuts it down"
    llm.llm_engine.shutdown()


@pytest.mark.parametrize("phase", ["loading", "step"])
def test_an_error_of_a_rank_names_it_and_keeps_its_type(
    phase: str, tiny_story: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FAULT, fault(1, phase, "raise"))
    monkeypatch.setattr("vllm.engine.core.make_executor", faulty_executor)
    if phase != "step":
        with pytest.raises(MemoryError, match=f"^rank 1: no memory for {phase}$"):
            LLM(**arguments(tiny_story))
        return
    llm = LLM(**arguments(tiny_story))
    with pytest.raises(EngineDeadError, match="MemoryError: rank 1: no memory for step"):
        llm.generate(["Once upon a time"], SamplingParams(max_tokens=50, ignore_eos=True))
    llm.llm_engine.shutdown()


def test_a_step_that_hangs_names_every_rank(
    tiny_story: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS", "2")
    monkeypatch.setenv(FAULT, fault(1, "step", "hang"))
    monkeypatch.setattr("vllm.engine.core.make_executor", faulty_executor)
    llm = LLM(**arguments(tiny_story))
    with pytest.raises(EngineDeadError) as caught:
        llm.generate(["Once upon a time"], SamplingParams(max_tokens=50, ignore_eos=True))
    said = str(caught.value)
    assert "took longer than 2 s (VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS)" in said
    for rank in (0, 1):
        assert re.search(rf"rank {rank} \(process \d+\) has not answered: in step \d+", said)
    llm.llm_engine.shutdown()
