"""Scheduler: decides, step by step, which tokens of which requests are computed.

There are no phases. A request is behind by the tokens that it knows and has not computed, be it a
whole prompt or one drawn token. A step computes some of them for as many requests as its token
budget and the KV cache allow. Planning needs lengths only, so steps can be planned while others are
in flight.
"""

from __future__ import annotations

import copy
import time
from collections import deque
from typing import TYPE_CHECKING

from vllm.core.admission import WaitingRows
from vllm.core.forms import CompiledForms
from vllm.core.kv_cache.manager import KVCacheManager
from vllm.core.lifecycle import Lifecycle
from vllm.core.prompts import PromptChunks
from vllm.core.results import Committed, Results
from vllm.core.running import RunningRows
from vllm.core.stage_chunks import StageChunks
from vllm.core.steady import NO_STEADY_ROWS
from vllm.core.step import InflightStep, Pass, RowLimit, Step
from vllm.messages.cache import KVCacheLayout
from vllm.messages.engine import EngineRequest, EngineStats, RequestUpdate
from vllm.messages.step import StepPlan, StepResult
from vllm.structured_output.compiler import NO_GRAMMARS, GrammarCompiler, NoGrammars

if TYPE_CHECKING:
    from vllm.config.vllm import VllmConfig


class Scheduler:
    """Plans steps in passes, and applies their results.

    `lifecycle` holds the requests, `kv` the bookkeeping of the KV cache, and `inflight` the steps
    that have been planned and not committed.
    """

    def __init__(
        self,
        config: VllmConfig,
        layout: KVCacheLayout,
        grammars: GrammarCompiler | NoGrammars = NO_GRAMMARS,
    ) -> None:
        settings = config.scheduler
        self.grammars = grammars
        self.kv = KVCacheManager(
            layout,
            config.cache.enable_prefix_caching,
            step_tokens=settings.max_num_batched_tokens * settings.pipeline_depth,
            gives_news=config.parallel.balances_by_cache,
        )
        self.lifecycle = Lifecycle(config, self.kv, grammars)
        self._num_stages = config.parallel.pipeline_parallel_size
        self.limits: list[RowLimit] = [PromptChunks(settings)]
        self.passes: list[Pass] = [
            CompiledForms(self.lifecycle, grammars, config.parallel.is_externally_launched),
            RunningRows(settings, self.lifecycle, self.limits),
            WaitingRows(self.lifecycle, self.limits),
        ]
        self.results = Results(self.lifecycle, config.model.eos_token_ids)
        self.inflight: deque[InflightStep] = deque()
        self.num_steps = 0
        self._most_tokens = settings.max_num_batched_tokens
        self._stage_chunks = StageChunks(settings, self.lifecycle, self._num_stages)
        assert settings.pipeline_depth >= self._num_stages, "stages would have nothing to do"

    @property
    def has_work(self) -> bool:
        """Whether a request has not ended, or its end has not been sent."""
        return bool(self.lifecycle.by_id) or self.lifecycle.has_updates

    @property
    def is_compiling(self) -> bool:
        return bool(self.lifecycle.compiling)

    def add(self, source: EngineRequest) -> None:
        """Queue a request that the Processor has checked."""
        self.lifecycle.add(source)

    def abort(self, request_id: str) -> None:
        """End a request wherever it is; an unknown id has ended already."""
        self.lifecycle.abort(request_id)

    def schedule(self) -> StepPlan | None:
        """Plan the next step; None when nothing can run before a step in flight commits."""
        self.kv.begin_step()
        for limit in self.limits:
            limit.begin_step()
        has_stages = self._num_stages > 1
        most_prompt_tokens = self._stage_chunks.most_tokens() if has_stages else self._most_tokens
        step = Step(self._most_tokens, self._most_decodes(), most_prompt_tokens, has_stages)
        for each in self.passes:
            each.plan(step)
        if step.is_empty:
            return None
        self.num_steps += 1
        released_slots = self.lifecycle.take_released_slots()
        plan = step.build(self.num_steps, released_slots, self.grammars.mask_words)
        self.inflight.append(InflightStep(self.num_steps, step.steady, step.rows, time.monotonic()))
        return plan

    def idle_plan(self) -> StepPlan:
        """A step without rows, for when others need this one's ranks."""
        self.num_steps += 1
        released_slots = self.lifecycle.take_released_slots()
        plan = Step(0, 0, 0).build(self.num_steps, released_slots, self.grammars.mask_words)
        self.inflight.append(InflightStep(self.num_steps, NO_STEADY_ROWS, [], time.monotonic()))
        return plan

    def _most_decodes(self) -> int:
        """Decoding rows of one step: a cohort per pipeline stage, of all running requests.

        The rows of a cohort come back when its step commits. So every request is in a step within
        as many steps as there are stages, whichever rows a step takes first.
        """
        return -(-len(self.lifecycle.running) // self._num_stages)

    def commit(self, plan: StepPlan, result: StepResult) -> Committed:
        """Apply the results of the oldest step in flight."""
        inflight = self.inflight.popleft()
        assert inflight.step == plan.step == result.step, (inflight.step, plan.step, result.step)
        return self.results.commit(inflight, result)

    def take_updates(self) -> list[RequestUpdate]:
        """Ends of requests that no step brought, since the last call."""
        return self.lifecycle.take_updates()

    def wait_compiled(self, timeout_s: float) -> None:
        """Wait until a grammar is compiled, for when nothing else is to be done."""
        self.grammars.wait(self.lifecycle.compiling.values(), timeout_s)

    def snapshot(self) -> EngineStats:
        """Counters, and how many requests and blocks there are now."""
        stats, lifecycle, pool = self.lifecycle.stats, self.lifecycle, self.kv.pool
        stats.num_running = len(lifecycle.running)
        stats.num_waiting = len(lifecycle.waiting) + len(lifecycle.compiling)
        stats.kv_usage = pool.usage
        stats.num_cached_blocks = pool.num_known
        return copy.copy(stats)

    def check_idle(self) -> None:
        """Assert that everything handed out has come back, if no request is left."""
        if not self.lifecycle.by_id and not self.inflight:
            self.lifecycle.check_idle()
