"""Thousands of requests of every kind while cores are killed and stopped: others go on."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections import Counter
from dataclasses import dataclass, field

import pytest

from tests.engine.by_core import ByCore
from tests.engine.test_soak import MAX_GROWTH_BYTES, TINY_STORY, make_plan, resident_bytes, run_all
from tests.limits import until
from vllm.engine import replicas
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.engine.async_llm import AsyncLLM
from vllm.engine.own_replicas import OwnReplicas
from vllm.metrics.prometheus import PrometheusStats

pytestmark = pytest.mark.engine


@dataclass
class Storm:
    """Kills one core after the other, and stops one for a while."""

    client: OwnReplicas
    interval_s: float
    stop_s: float
    rng: random.Random
    killed: list[int] = field(default_factory=list)  # processes

    async def rage(self) -> None:
        victims = list(range(len(self.client.pids)))
        while True:
            await asyncio.sleep(self.interval_s)
            core = self.rng.choice(victims)
            if self.client._replicas[core].state is not replicas.State.UP:
                continue
            pid = self.client.pids[core]
            if self.stop_s and len(self.killed) % 2:
                os.kill(pid, signal.SIGSTOP)
                try:
                    await asyncio.sleep(self.stop_s)
                finally:
                    os.kill(pid, signal.SIGCONT)
                await asyncio.sleep(1.0)
            os.kill(pid, signal.SIGKILL)
            self.killed.append(pid)


@pytest.mark.parametrize(
    ("num_cores", "num_requests", "interval_s", "stop_s"),
    [
        (2, 500, 0.3, 0.0),
        pytest.param(3, 20_000, 20.0, 8.0, marks=pytest.mark.product),
    ],
)
async def test_only_requests_of_a_core_that_is_killed_fail(
    num_cores: int,
    num_requests: int,
    interval_s: float,
    stop_s: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for cache in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        monkeypatch.setenv(cache, "8")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    llm = AsyncLLM.from_engine_args(
        AsyncEngineArgs(
            model=str(TINY_STORY),
            data_parallel_size=num_cores,
            scheduling_policy="priority",
            max_num_seqs=16,
            max_num_batched_tokens=512,
            max_model_len=512,
            num_gpu_blocks_override=80,
            disable_log_stats=True,
        )
    )
    client = llm.client
    assert isinstance(client, OwnReplicas)
    by_core = ByCore()
    metrics = PrometheusStats.of(llm.vllm_config, client.cores)
    for stat_logger in (by_core, metrics):
        llm.add_stat_logger(stat_logger)
    storm = Storm(client, interval_s, stop_s, random.Random(5))
    try:
        rng = random.Random(11)
        plans = [make_plan(rng, index) for index in range(num_requests)]
        ends = await run_all(llm, plans[: num_requests // 5])
        before = resident_bytes(os.getpid())
        raging = asyncio.create_task(storm.rage())
        ends += await run_all(llm, plans[num_requests // 5 :])
        raging.cancel()
        assert ends.total() == num_requests
        assert not llm.num_open_requests
        # A core that was stopped has yet to answer the last aborts.
        await until(lambda: not client._owners)
        assert_only_requests_of_the_killed_failed(ends, storm.killed)
        assert resident_bytes(os.getpid()) - before < MAX_GROWTH_BYTES
        # The end of the last one may not have been seen yet.
        await until(lambda: not {*storm.killed} & {*client.pids})
        states = client._replicas.values()
        await until(lambda: all(each.state is replicas.State.UP for each in states))
        assert await llm.call("check_integrity") == [None] * num_cores
        assert_metrics_add_up(metrics, plans, num_cores)
    finally:
        llm.shutdown()


def assert_only_requests_of_the_killed_failed(ends: Counter[str], killed: list[int]) -> None:
    errors = {end for end in ends if "engine core" in end}
    assert set(ends) - errors == {"stop", "length", "abort", "left"}
    assert killed, "the storm was over before it began"
    for error in errors:
        assert any(f"(process {pid}) was killed by SIGKILL" in error for pid in killed), error


def assert_metrics_add_up(metrics: PrometheusStats, plans: list, num_cores: int) -> None:
    samples = [s for family in metrics.registry.collect() for s in family.samples]
    ended = [s for s in samples if s.name == "vllm:request_success_total"]
    assert {s.labels["engine"] for s in ended} == set(map(str, range(num_cores)))
    assert sum(s.value for s in ended) == sum(plan.params.n for plan in plans)
