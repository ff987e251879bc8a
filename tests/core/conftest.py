"""Builders for scheduler tests."""

from __future__ import annotations

from collections import deque
from types import SimpleNamespace
from typing import Any

from tests.core.device_model import DeviceModel, next_token
from vllm.core.scheduler import Scheduler
from vllm.messages.cache import (
    AnySpec,
    FullAttention,
    KVCacheLayout,
    SlidingWindow,
    groups_by_needs,
)
from vllm.messages.engine import EngineRequest, FinishReason, RequestUpdate
from vllm.messages.step import StepPlan, StepResult
from vllm.sampling_params import SamplingParams
from vllm.structured_output.compiler import NO_GRAMMARS

BLOCK = 4
# Steps in flight, and pipeline stages.
PIPELINES = [(1, 1), (2, 1), (4, 1), (3, 1), (3, 3), (4, 3)]


def layout(num_blocks: int = 64, window: int | None = None, hybrid: bool = False) -> KVCacheLayout:
    sizes = {
        "block_size": BLOCK,
        "num_kv_heads": 1,
        "head_dim": 8,
        "value_dim": 8,
        "dtype_bytes": 4,
    }
    specs: dict[str, AnySpec] = {}
    if window is None or hybrid:
        specs["full"] = FullAttention(**sizes)
    if window is not None:
        specs["sliding"] = SlidingWindow(**sizes, window_tokens=window)
    return KVCacheLayout(num_blocks, groups_by_needs(specs))


def make_config(**changes: Any) -> Any:
    """Only what a scheduler reads of a VllmConfig."""
    scheduler = {
        "max_num_seqs": 8,
        "max_num_batched_tokens": 64,
        "enable_chunked_prefill": True,
        "policy": "fcfs",
        "pipeline_depth": 1,
        "pipeline_chunk_tokens": 64,
        "long_prefill_token_threshold": 0,
        "max_num_partial_prefills": 1,
        "max_long_partial_prefills": 1,
    }
    enable_prefix_caching = changes.pop("enable_prefix_caching", True)
    max_model_len = changes.pop("max_model_len", 128)
    eos = changes.pop("eos_token_ids", frozenset())
    num_stages = changes.pop("num_stages", 1)
    is_launched = changes.pop("is_externally_launched", False)
    balances_by_cache = changes.pop("balances_by_cache", False)
    scheduler.update(changes)
    return SimpleNamespace(
        scheduler=SimpleNamespace(**scheduler),
        cache=SimpleNamespace(enable_prefix_caching=enable_prefix_caching),
        parallel=SimpleNamespace(
            pipeline_parallel_size=num_stages,
            is_externally_launched=is_launched,
            balances_by_cache=balances_by_cache,
        ),
        model=SimpleNamespace(max_model_len=max_model_len, eos_token_ids=eos),
    )


class Engine:
    """A scheduler and a device model, `pipeline_depth` steps apart."""

    def __init__(self, kv: KVCacheLayout | None = None, **changes: Any) -> None:
        most_tokens = changes.pop("most_tokens", 1)
        grammars = changes.pop("grammars", NO_GRAMMARS)
        least_steady_rows = changes.pop("least_steady_rows", 0)
        self.config = make_config(**changes)
        self.layout = kv or layout()
        self.scheduler = Scheduler(self.config, self.layout, grammars)
        self.scheduler.lifecycle.steady.least_rows = least_steady_rows
        num_stages = self.config.parallel.pipeline_parallel_size
        self.device = DeviceModel(self.layout, num_stages, most_tokens)
        self.inflight: deque[tuple[StepPlan, StepResult]] = deque()
        self.outputs: dict[str, list[int]] = {}
        self.reasons: dict[str, FinishReason] = {}
        self.plans: list[StepPlan] = []
        self.num_steady = 0  # tokens of rows that were not looked at one by one

    def add(self, request_id: str, prompt: list[int], priority: int = 0, **params: Any) -> None:
        params.setdefault("max_tokens", 8)
        params.setdefault("seed", 0)
        salt = params.pop("cache_salt", None)
        source = EngineRequest(request_id, prompt, SamplingParams(**params), 0.0, priority, salt)
        self.scheduler.add(source)
        self.outputs[request_id] = []

    def step(self) -> list[RequestUpdate]:
        depth = self.config.scheduler.pipeline_depth
        while len(self.inflight) < depth and (plan := self.scheduler.schedule()):
            self.plans.append(plan)
            assert plan.num_tokens <= self.config.scheduler.max_num_batched_tokens
            # The device runs ahead of the host: it has executed before the host looks at results.
            self.inflight.append((plan, self.device.execute(plan)))
        if self.inflight:
            updates, slots, token_ids = self.scheduler.commit(*self.inflight.popleft())
            self.num_steady += len(slots)
            for slot, token_id in zip(slots.tolist(), token_ids.tolist(), strict=True):
                updates.append(
                    RequestUpdate(self.scheduler.lifecycle.steady.holder(slot).id, [token_id])
                )
        else:
            updates = self.scheduler.take_updates()
            assert updates or not self.scheduler.has_work, "stuck"
        for update in updates:
            self.outputs[update.request_id] += update.token_ids
            if update.finish_reason is not None:
                assert update.request_id not in self.reasons, "finished twice"
                self.reasons[update.request_id] = update.finish_reason
        self.scheduler.kv.pool.check()
        return updates

    def run(self) -> None:
        for _ in range(10_000):
            if not (self.scheduler.has_work or self.inflight):
                break
            self.step()
        self.scheduler.check_idle()
        assert self.scheduler.kv.pool.is_whole


def expected(
    prompt: list[int], count: int, seed: int = 0, stops: frozenset[int] = frozenset()
) -> list[int]:
    row = list(prompt)
    for _ in range(count):
        row.append(next_token(tuple(row), seed))
        if row[-1] in stops:
            break
    return row[len(prompt) :]
