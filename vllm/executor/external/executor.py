"""The executor of a program that torchrun has started once per rank.

Every process runs the program, a scheduler and one rank. Schedulers get the same requests and the
same values, those of the driver, and so plan the same steps; digests of plans show where they do
not.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from vllm.distributed.launched import Launched
from vllm.distributed.place import Place
from vllm.distributed.rendezvous import limit_of
from vllm.envs import Environment
from vllm.executor.base import StepHandle
from vllm.executor.control import Method, RankStep, WorkerType, invoke
from vllm.executor.external.daemon import DaemonThread
from vllm.executor.external.meeting import Met, meet
from vllm.executor.external.siblings import Siblings
from vllm.executor.handshake import compare, introduction
from vllm.executor.ranks import SetAside, no_devices
from vllm.logger import init_logger, tag_process
from vllm.messages.cache import KVCacheLayout
from vllm.messages.codec import decoder, encoder
from vllm.messages.facts import WorkerFacts
from vllm.messages.sibling import Introduction, planned
from vllm.messages.step import StepPlan, StepResult
from vllm.utils.unnamed_memory import UnnamedMemory

if TYPE_CHECKING:
    from vllm.config.vllm import VllmConfig

logger = init_logger(__name__)

T = TypeVar("T")

_GRACE_S: Final = 5.0  # for what the rank has begun, and others may have left


class ExternalExecutor:
    """Runs the rank of this process in a thread, and shares the values of steps with its siblings.

    Another rank that fails or dies ends the engine here too, also while this rank waits for it.
    """

    def __init__(
        self,
        config: VllmConfig,
        worker_type: WorkerType,
        places: list[Place],
        devices: SetAside = no_devices,
    ) -> None:
        """`places` of all ranks, by rank; `devices` sets one aside for this process."""
        self._config = config
        self._worker_type = worker_type
        self._launched = Launched.read()
        self._places = places
        self._place = places[self._launched.rank]
        (self._driver,) = (place.rank for place in places if place.is_driver)
        self._devices = devices
        self._closing = ExitStack()
        self._memory = UnnamedMemory()
        self._closing.callback(self._memory.close)
        self._siblings: Siblings | None = None
        self._rank = DaemonThread(f"rank-{self._place.rank}")
        # Waiting for the values of a step must not keep the next from being started.
        is_threaded = self._place.is_driver and config.scheduler.pipeline_depth > 1
        self._values = DaemonThread("values") if is_threaded else None
        self._is_stopping = False

    def start(self) -> list[WorkerFacts]:
        """Raises ConfigError if the ranks differ in settings; then none of them has loaded."""
        limit_s = float(Environment().VLLM_ENGINE_READY_TIMEOUT_S)
        met = meet(self._launched, self._driver, limit_s)
        patience_s = limit_of(self._config.parallel.host_timeout_seconds).total_seconds()
        siblings = self._siblings = Siblings(
            self._place.rank, self._driver, len(self._places), met.peers, patience_s
        )
        try:
            own = self._introduction(met)
        except Exception as error:
            siblings.fail(error)
            raise
        shown = self._gather(own, Introduction, limit_s, "make its engine")
        compare([each.settings for each in shown])
        first_of_stage = self._place.rank - self._place.tp.rank
        self._place = replace(
            self._place,
            rendezvous=shown[0].rendezvous,
            memory=shown[first_of_stage].memory,
            address=met.address,
        )
        if len(self._places) > 1:
            tag_process(f"rank {self._place.rank}")
        try:
            facts = self._run(self._load, met.store)
        except Exception as error:
            siblings.fail(error)
            raise
        return self._gather(facts, WorkerFacts, limit_s, "load the model")

    def bind_kv_cache(self, layout: KVCacheLayout) -> None:
        siblings = self._siblings
        assert siblings is not None
        try:
            self._run(lambda: self._worker.bind_kv_cache(layout))
        except Exception as error:
            siblings.fail(error)
            raise
        # Compiling takes as long as it takes; there is no limit to how long another rank is behind.
        siblings.gather(b"", None, "warm up")

    def submit(self, plan: StepPlan) -> StepHandle:
        siblings = self._siblings
        assert siblings is not None
        siblings.check()
        self._rank.submit(self._execute, plan)
        siblings.plan(planned(plan))
        return _Step(siblings, plan.step)

    def call(self, method: Method, *args: Any) -> list[Any]:
        """Runs on this process's rank alone: every process makes its own calls."""
        return [self._run(lambda: invoke(self._worker, method, args))]

    def check_health(self) -> None:
        if self._siblings is not None:
            self._siblings.check()

    def stop(self) -> None:
        """Steps still in flight are given up."""
        if self._is_stopping:
            return
        self._is_stopping = True
        siblings = self._siblings
        # A rank may wait without end for one that has failed.
        patience_s = 0.0 if siblings is not None and siblings.has_failed else _GRACE_S
        self._rank.submit(self._closing.close)
        has_ended = self._rank.stop(patience_s)
        if self._values is not None:
            self._values.stop(patience_s)
        if siblings is not None:
            siblings.leave()
        if not has_ended:
            logger.warning("Rank %d is left in a step that does not end", self._place.rank)

    # -- start ------------------------------------------------------------------------------------

    def _introduction(self, met: Met) -> Introduction:
        place = self._place
        rendezvous = memory = ""
        if place.rank == 0:
            # Kept, so that the port stays this process's: the stores that ranks make are this one.
            # A FileStore would end a process that outlives the file.
            self._store = TCPStore(
                met.address,
                0,
                place.world_size,
                is_master=True,
                wait_for_workers=False,
                multi_tenant=True,
            )
            rendezvous = f"{met.address}:{self._store.port}"
        stage = self._places[place.rank : place.rank + place.tp.size]
        if place.tp.rank == 0 and len({each.node for each in stage}) == 1:
            memory, _ = self._memory.new("vllm-ranks")
        return Introduction(introduction(self._config), rendezvous, memory)

    def _gather(
        self, value: msgspec.Struct, kind: type[T], limit_s: float | None, what: str
    ) -> list[T]:
        siblings = self._siblings
        assert siblings is not None
        decode: Callable[[bytes], T] = decoder(kind).decode
        return [decode(each) for each in siblings.gather(encoder().encode(value), limit_s, what)]

    def _load(self, store: Store) -> WorkerFacts:
        (device,) = self._closing.enter_context(self._devices([self._place.rank]))
        self._worker = self._worker_type(self._config, replace(self._place, device=device))
        self._closing.callback(self._worker.close)
        if not dist.is_initialized():
            # Programs that torchrun starts ask for their rank there.
            dist.init_process_group(
                "gloo",
                store=PrefixStore("default", store),
                rank=self._launched.rank,
                world_size=self._launched.world_size,
            )
        self._worker.load()
        return self._worker.facts()

    # -- the rank's thread ------------------------------------------------------------------------

    def _run(self, call: Callable[..., T], *args: Any) -> T:
        """In the rank's thread, after all that was queued. Raises what has ended the engine."""
        siblings = self._siblings
        assert siblings is not None
        future: Future[T] = self._rank.submit(call, *args)
        future.add_done_callback(lambda _: siblings.notify())
        siblings.wait(future.done)
        return future.result()

    def _execute(self, plan: StepPlan) -> None:
        siblings = self._siblings
        assert siblings is not None
        if self._is_stopping or siblings.has_failed:
            return
        try:
            answer = self._worker.execute(plan)
        except Exception as error:
            siblings.fail(error)
            return
        if self._values is not None:
            self._values.submit(self._answer, answer)
        elif self._place.is_driver:
            self._answer(answer)

    def _answer(self, answer: RankStep) -> None:
        siblings = self._siblings
        assert siblings is not None
        try:
            result = answer.result()
        except Exception as error:
            siblings.fail(error)
            return
        assert result is not None
        siblings.publish(result)


class _Step:
    """A step queued on the rank's thread, whose values come from the driver."""

    def __init__(self, siblings: Siblings, step: int) -> None:
        self._siblings = siblings
        self._step = step

    def result(self) -> StepResult:
        return self._siblings.values_of(self._step)
