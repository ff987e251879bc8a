"""What is lost when a process dies: this engine, at once, with a reason; nothing else."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.limits import until
from vllm import LLM, AsyncEngineArgs, SamplingParams
from vllm.engine.async_llm import AsyncLLM
from vllm.errors import EngineDeadError, NotAvailable

pytestmark = pytest.mark.engine


def rank_of(core_pid: int) -> int:
    """The process that the engine core has spawned to run the model."""
    children = Path(f"/proc/{core_pid}/task/{core_pid}/children").read_text().split()
    (rank,) = (c for c in children if b"spawn_main" in Path(f"/proc/{c}/cmdline").read_bytes())
    return int(rank)


async def test_a_rank_that_dies_while_idle_is_noticed_without_a_request(tiny_story: Path) -> None:
    engine = AsyncLLM.from_engine_args(
        AsyncEngineArgs(model=str(tiny_story), distributed_executor_backend="mp")
    )
    try:
        await engine.check_health()
        os.kill(rank_of(engine.client.pid), signal.SIGKILL)
        await until(lambda: not engine.is_running, "the engine's end")
        with pytest.raises(EngineDeadError, match="rank 0"):
            await engine.check_health()
    finally:
        engine.shutdown()


def test_logits_processors_are_refused_where_they_cannot_go(tiny_story: Path) -> None:
    llm = LLM(str(tiny_story), distributed_executor_backend="mp")
    params = SamplingParams(max_tokens=2, logits_processors=[lambda output, logits: logits])
    try:
        with pytest.raises(NotAvailable, match="distributed-executor-backend uni"):
            llm.generate(["One day"], params, use_tqdm=False)
        assert llm.generate(["One day"], SamplingParams(max_tokens=2), use_tqdm=False)[0].finished
    finally:
        llm.llm_engine.shutdown()
