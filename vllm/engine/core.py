"""EngineCore: the loop between scheduler and executor, and nothing else."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from vllm.config.vllm import VllmConfig
from vllm.core.kv_cache.sizing import plan_kv_cache
from vllm.core.results import Committed
from vllm.core.scheduler import Scheduler
from vllm.engine.core_watch import make_watch
from vllm.engine.tokenizer import model_tokenizer
from vllm.engine.wave import NoWaves, Waves
from vllm.errors import BadRequest
from vllm.executor import make_executor
from vllm.executor.base import StepHandle
from vllm.executor.control import Method
from vllm.logger import init_logger
from vllm.messages.cache import KVCacheLayout
from vllm.messages.engine import (
    Abort,
    BeginWave,
    Call,
    CallResult,
    EngineReady,
    EngineRequest,
    StepUpdates,
    ToEngine,
)
from vllm.messages.facts import RankMemory, WorkerFacts
from vllm.messages.step import StepPlan
from vllm.profiling.timeline import process_timeline
from vllm.structured_output.compiler import GrammarCompiler
from vllm.transformers_utils.tokenizer import full_tokenizer

logger = init_logger(__name__)

COMPILING_WAIT_S: Final = 0.005


def _memory_of(facts: WorkerFacts, layout: KVCacheLayout) -> RankMemory:
    return RankMemory(
        weights=facts.weight_bytes,
        activations=facts.activation_bytes,
        kv_cache=layout.num_blocks * layout.of(facts.kv_specs).bytes_per_block,
        device=facts.total_bytes,
    )


class EngineCore:
    """One scheduler, one executor, and up to `pipeline_depth` steps in flight between them.

    Depth 1 is synchronous; at depth 2 the host plans step N + 1 and handles the results of step
    N - 1 while step N computes. Not thread-safe: one thread calls everything.
    """

    CALLS = ("reset_prefix_cache", "collective_rpc", "profile", "launch_shapes", "check_integrity")

    def __init__(self, config: VllmConfig) -> None:
        started_s = time.monotonic()
        self.config = config
        self.depth = config.scheduler.pipeline_depth
        self.executor = make_executor(config)
        try:
            facts = self.executor.start()
            layout = plan_kv_cache(config, facts)
            self.executor.bind_kv_cache(layout)
            counts_shapes = self.launch_shapes() is not None
        except BaseException:
            self.executor.stop()
            raise
        self.scheduler = Scheduler(config, layout, self._grammar_compiler())
        self.watch = make_watch(process_timeline())
        self.inflight: deque[tuple[StepPlan, StepHandle]] = deque()
        self.waves = NoWaves()
        self.ready = EngineReady(
            num_blocks=layout.num_blocks,
            block_size=config.cache.block_size,
            start_s=time.monotonic() - started_s,
            ranks=tuple(_memory_of(rank, layout) for rank in facts),
            counts_shapes=counts_shapes,
        )

    @property
    def has_work(self) -> bool:
        return bool(self.inflight) or self.scheduler.has_work or self.waves.is_on

    def step_with_others(self, tell: Callable[[int], None]) -> None:
        """From now on take every step together with cores that share experts with this one.

        `tell` them that a wave begins.
        """
        self.waves = Waves(tell)

    def handle(self, message: ToEngine) -> CallResult | None:
        """Take a message from the front end; calls are answered at once."""
        if isinstance(message, EngineRequest):
            self.scheduler.add(message)
        elif isinstance(message, Abort):
            for request_id in message.request_ids:
                self.scheduler.abort(request_id)
        elif isinstance(message, Call):
            return self._call(message)
        elif isinstance(message, BeginWave):
            self.waves.enter(message.number)
        return None

    def step(self) -> StepUpdates | None:
        """Fill the pipeline, then commit its oldest step. None when there was nothing to do."""
        watch = self.watch
        watch.scheduling()
        while len(self.inflight) < self.depth and (plan := self._next_plan()):
            watch.submitting(plan)
            self.inflight.append((plan, self.executor.submit(plan)))
            watch.scheduling()
        if self.inflight:
            plan, handle = self.inflight.popleft()
            watch.waiting(plan)
            result = handle.result()
            watch.committing(plan)
            committed = self.scheduler.commit(plan, result)
            watch.committed(plan)
            self.waves.note(result, len(self.inflight))
            if not plan.num_rows and not committed.updates:
                return None
        else:
            committed = Committed(self.scheduler.take_updates())
            if not committed.updates:
                self._wait_compiled()
                return None
        if not self.has_work:
            self.scheduler.check_idle()
        stats = self.scheduler.snapshot()
        watch.counted(stats)
        return StepUpdates(
            committed.updates,
            stats,
            time.monotonic(),
            committed.slots,
            committed.token_ids,
            news=self.scheduler.kv.take_news(),
        )

    def _next_plan(self) -> StepPlan | None:
        if not self.waves.admits:
            return None
        plan = self.scheduler.schedule()
        if plan is not None:
            self.waves.begin()
        elif self.waves.is_on:
            plan = self.scheduler.idle_plan()
        return plan

    def _wait_compiled(self) -> None:
        """All there is to do is compiling: look again soon, also for new requests."""
        scheduler = self.scheduler
        if scheduler.is_compiling:
            scheduler.wait_compiled(COMPILING_WAIT_S)
        else:
            is_stuck = scheduler.has_work and self.waves.admits
            assert not is_stuck, "requests wait, nothing is in flight, and nothing can be planned"

    def _grammar_compiler(self) -> GrammarCompiler:
        model = self.config.model
        return GrammarCompiler(
            self.config.structured_outputs,
            model.vocab_size,
            model.eos_token_ids,
            load_tokenizer=lambda: full_tokenizer(model_tokenizer(model)),
        )

    def check_health(self) -> None:
        """Raises ExecutorDied if a rank is gone; the way to notice it while there is no work."""
        self.executor.check_health()

    def stop(self) -> None:
        self.scheduler.grammars.stop()
        self.executor.stop()
        self.watch.close()

    # -- control plane ----------------------------------------------------------------------------

    def _call(self, call: Call) -> CallResult:
        if call.method not in self.CALLS:
            return CallResult(call.call_id, error=f"the engine has no call {call.method!r}")
        try:
            return CallResult(call.call_id, getattr(self, call.method)(*call.args))
        except BadRequest as error:  # says all there is to say
            return CallResult(call.call_id, error=f"{type(error).__name__}: {error}")
        except Exception as error:  # the caller's to handle; the engine goes on
            logger.exception("Call of %s failed", call.method)
            return CallResult(call.call_id, error=f"{type(error).__name__}: {error}")

    def reset_prefix_cache(self) -> bool:
        """Forget all cached prefixes; False while any request holds blocks."""
        return self.scheduler.kv.pool.forget_all()

    def collective_rpc(self, method: Method, *args: Any) -> list[Any]:
        """Run a method or a function of the Worker on every rank, after the steps submitted so
        far."""
        return self.executor.call(method, *args)

    def profile(self, is_start: bool) -> None:
        """Start or stop the torch profiler of every rank. Raises NotAvailable."""
        self.executor.call("profile", is_start)

    def launch_shapes(self) -> list[Any] | None:
        """Of every prepared shape of rank 0 a ShapeUsage; None on devices that prepare none."""
        shapes: list[Any] | None = self.executor.call("launch_shapes")[0]
        return shapes

    def check_integrity(self) -> None:
        """Assert that blocks, slots and requests add up."""
        self.scheduler.kv.pool.check()
        self.scheduler.check_idle()
