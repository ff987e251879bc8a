"""Thousands of requests of every kind at once: each ends as it should, and nothing is left."""

from __future__ import annotations

import asyncio
import os
import random
import resource
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.engine.async_llm import AsyncLLM
from vllm.engine.client import ProcessClient
from vllm.messages.engine import EngineStats
from vllm.metrics.stats import IterationStats
from vllm.sampling_params import RequestOutputKind, SamplingParams

pytestmark = pytest.mark.engine

TINY_STORY = Path(__file__).parents[2] / "examples" / "models" / "tiny-story"
NUM_REQUESTS = 2000
NUM_CALLERS = 160  # more than the engine has slots
MAX_GROWTH_BYTES = 16 << 20
STARTS = [
    "Once upon a time",
    "One day",
    "What is 4 + 5?",
    "The fox",
    "Tell me a story about a boat.",
]


@dataclass(frozen=True)
class Plan:
    """One request, and what its caller does to it."""

    request_id: str
    prompt: str
    params: SamplingParams
    priority: int
    leave_after: int  # outputs until the caller closes the stream; 0: stays to the end
    abort_after_s: float  # 0: nobody does


def make_plan(rng: random.Random, index: int) -> Plan:
    max_tokens = rng.randint(1, 40)
    n = rng.choice([1] * 9 + [3])
    params = SamplingParams(
        n=n,
        temperature=1.0 if n > 1 else rng.choice([0.0, 0.7, 1.0]),
        top_p=rng.choice([1.0, 0.9]),
        seed=index,
        max_tokens=max_tokens,
        min_tokens=rng.choice([0, 0, max_tokens // 2]),
        ignore_eos=rng.random() < 0.3,
        stop=rng.choice([[], [], [" the"], [".", "was a"]]),
        logprobs=rng.choice([None, None, None, 2]),
        output_kind=rng.choice(list(RequestOutputKind)),
    )
    prompt = rng.choice(STARTS) + " and then" * int(rng.expovariate(0.1))
    act = rng.random()
    return Plan(
        f"r{index}",
        prompt,
        params,
        rng.randint(0, 3),
        leave_after=rng.randint(1, 5) if act < 0.1 else 0,
        abort_after_s=rng.uniform(0.001, 0.5) if act > 0.9 else 0.0,
    )


async def run(llm: AsyncLLM, plan: Plan) -> str:
    """How the request ended; an error by its text. Checks what can be known of its output."""
    params = plan.params
    outputs = llm.generate(plan.prompt, params, plan.request_id, priority=plan.priority)
    tokens: dict[int, list[int]] = {}
    texts: dict[int, str] = {}
    reasons: dict[int, str] = {}
    count = 0
    async for output in outputs:
        count += 1
        for choice in output.outputs:
            is_delta = params.output_kind is RequestOutputKind.DELTA
            known = tokens.get(choice.index, []) if is_delta else []
            tokens[choice.index] = known + choice.token_ids
            text = texts.get(choice.index, "") if is_delta else ""
            texts[choice.index] = text + choice.text
            if choice.finish_reason == "error":
                await outputs.aclose()
                return str(choice.stop_reason)
            if choice.finish_reason is not None:
                reasons[choice.index] = choice.finish_reason
            if choice.logprobs is not None:
                assert len(choice.logprobs) == len(choice.token_ids)
        if count == plan.leave_after:
            await outputs.aclose()
            return "left"
    assert len(reasons) == params.n, plan
    for index, reason in reasons.items():
        assert reason in ("stop", "length", "abort"), reason
        assert len(tokens[index]) <= (params.max_tokens or 0)
        if reason == "length":
            assert len(tokens[index]) == params.max_tokens
        if reason == "stop":
            assert len(tokens[index]) >= params.min_tokens
            if not params.min_tokens:
                assert not any(stop in texts[index] for stop in params.stop_strings)
    return max(reasons.values(), key=lambda reason: reason == "abort")


async def run_all(llm: AsyncLLM, plans: list[Plan]) -> Counter[str]:
    """All of them, NUM_CALLERS at a time."""
    waiting = iter(plans)
    ends: Counter[str] = Counter()
    aborters: list[asyncio.Task[None]] = []

    async def abort(plan: Plan) -> None:
        await asyncio.sleep(plan.abort_after_s)
        await llm.abort(plan.request_id)

    async def caller() -> None:
        for plan in waiting:
            if plan.abort_after_s:
                aborters.append(asyncio.create_task(abort(plan)))
            ends[await run(llm, plan)] += 1

    await asyncio.gather(*(caller() for _ in range(NUM_CALLERS)))
    await asyncio.gather(*aborters)
    return ends


def resident_bytes(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize()


class Latest:
    """The engine core's newest word on itself."""

    def record(self, engine: EngineStats, iteration: IterationStats, core: int = 0) -> None:
        self.stats = engine


async def test_two_thousand_requests_all_end_and_leave_nothing_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # oneDNN keeps code for every number of tokens it has multiplied, up to half a gigabyte of it;
    # that would hide what we are looking for.
    for cache in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        monkeypatch.setenv(cache, "8")
    llm = AsyncLLM.from_engine_args(
        AsyncEngineArgs(
            model=str(TINY_STORY),
            scheduling_policy="priority",
            max_num_seqs=64,
            max_num_batched_tokens=512,
            max_model_len=512,
            num_gpu_blocks_override=80,  # too few for all slots: requests are preempted
            pipeline_depth=2,
        )
    )
    try:
        assert isinstance(llm.client, ProcessClient)
        latest = Latest()
        llm.add_stat_logger(latest)
        rng = random.Random(11)
        plans = [make_plan(rng, index) for index in range(NUM_REQUESTS)]
        warm = NUM_REQUESTS // 4
        ends = await run_all(llm, plans[:warm])
        processes = (os.getpid(), llm.client.pid)
        before = [resident_bytes(pid) for pid in processes]
        ends += await run_all(llm, plans[warm:])
        growth = [resident_bytes(pid) - b for pid, b in zip(processes, before, strict=True)]
        assert ends.total() == NUM_REQUESTS
        assert set(ends) == {"stop", "length", "abort", "left"}
        assert not llm.num_open_requests
        while latest.stats.num_running or latest.stats.num_waiting:
            await asyncio.sleep(0.01)
        assert latest.stats.kv_usage == 0.0
        assert latest.stats.num_preemptions > 0, latest.stats
        await llm.call("check_integrity")
        assert max(growth) < MAX_GROWTH_BYTES
    finally:
        llm.shutdown()
