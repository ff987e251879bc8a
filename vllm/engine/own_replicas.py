"""Cores of several copies of the model, started by this process and started again when they end."""

from __future__ import annotations

import atexit
import threading
import time
from collections.abc import Sequence
from typing import Final

from vllm.config.vllm import VllmConfig
from vllm.engine.addresses import Addresses, CoreAddress
from vllm.engine.balance import make_balance
from vllm.engine.client import LivingCore, stop_at_exit
from vllm.engine.core_handle import (
    MOST_STARTS,
    PATIENCE_S,
    START_PATIENCE_S,
    CoreProcess,
    core_config,
    end_all,
    start_error,
)
from vllm.engine.core_meeting import CoreMeeting, meeting_of, where_others_meet
from vllm.engine.core_process import CoreMaker, make_engine_core
from vllm.engine.far_copies import FarCopies
from vllm.engine.front_link import FrontLink, is_readable
from vllm.engine.heartbeat import OwnPulse
from vllm.engine.ray_copies import RayCopies
from vllm.engine.replicas import Replica, Replicas, State
from vllm.engine.scratch import Scratch
from vllm.engine.stopped_cores import StoppedCores
from vllm.errors import EngineDeadError
from vllm.logger import init_logger
from vllm.messages.engine import EngineDead, EngineReady, Shutdown
from vllm.utils.open_files import need_open_files
from vllm.utils.spawning import refuse_while_imported

logger = init_logger(__name__)

_TICK_S: Final = 0.2
_TELL_S: Final = 10.0
PAUSE_S: Final = 1.0  # after the system has refused a process


class OwnReplicas(Replicas):
    """Front end 0 of the cores; others attach themselves at the addresses after the first.

    Machines with other copies come to it where not all are on this one.
    """

    def __init__(
        self,
        config: VllmConfig,
        make_core: CoreMaker | None = None,
        num_others: int = 0,
        wait: bool = True,
        ends_with_others: bool = False,
    ) -> None:
        """Waits until all cores are up, or leaves that to a call of `wait_until_ready`.

        `ends_with_others`: a stop waits until all stop that have copies of the model which share
        experts with these.

        Raises ConfigError, LoadError or EngineDeadError.
        """
        self._stopped = True  # until there is something to stop
        self._ends_with_others = ends_with_others and config.spreads_experts
        refuse_while_imported()
        need_open_files()
        self._make_core = make_core or make_engine_core
        self._scratch = Scratch()
        self.directory = self._scratch.path
        self._far_copies: FarCopies | None = None
        self._ray_copies: RayCopies | None = None
        self._meeting: CoreMeeting | None = None
        self._starting = threading.Lock()  # a stop must know of every process
        parallel = config.parallel
        num_local, num_cores = parallel.data_parallel_size_local, parallel.served_copies
        self.addresses = Addresses.of(self.directory, 1 + num_others)
        try:
            if parallel.data_parallel_backend == "ray":
                self._ray_copies = RayCopies(config)
                config = self._ray_copies.config
            self._meeting = meeting_of(config)
            self._meet_at = self._meeting.at if self._meeting else where_others_meet(config)
            if num_local < num_cores:
                far = range(num_local, num_cores)
                self._far_copies = FarCopies(config, self.addresses, far, self._meet_at)
                self.addresses = self._far_copies.addresses
        except BaseException:
            self._leave_others()
            self._close_meeting()
            raise
        self._config = config
        super().__init__(FrontLink(self.addresses, 0), config)
        self._failed_starts = dict.fromkeys(range(num_local), 0)
        self._processes: dict[int, CoreProcess] = {}
        self._stopped_cores: StoppedCores | None = None
        self._at_exit = stop_at_exit(self)
        try:
            for number in range(num_cores):
                self._replicas[number] = self._replica(number, is_far=number >= num_local)
            if self._ray_copies is not None:
                assert self._far_copies is not None
                self._ray_copies.start(self._far_copies.give_up)
        except BaseException:
            self.abandon()
            raise
        if wait:
            self.wait_until_ready()

    def _replica(self, number: int, is_far: bool) -> Replica:
        """A core that is started here, or waited for."""
        address = CoreAddress(self.directory, number, meeting=self._meet_at)
        if is_far:
            return Replica(address._replace(life=-1), OwnPulse(), State.GONE, is_far)
        process = self._processes[number] = self._start(address)
        return Replica(address, process.pulse, State.STARTING)

    def __del__(self) -> None:
        self.stop()

    @property
    def pids(self) -> list[int]:
        """Processes of this machine, by core."""
        return [process.pid for process in self._processes.values()]

    @property
    def living_cores(self) -> Sequence[LivingCore]:
        """What other front ends need to attach themselves."""
        return [
            LivingCore(replica.address, ready)
            for replica, ready in zip(self._replicas.values(), self.cores, strict=True)
        ]

    def wait_until_ready(self) -> None:
        """Before anything is received. Raises as the constructor does, and gives up all cores."""
        found: dict[int, EngineReady] = {}
        try:
            while len(found) < len(self._replicas):
                core, message, _ = self._link.receive()
                if isinstance(message, EngineDead):
                    raise start_error(message)
                if message is None:
                    raise EngineDeadError(self._how_it_ended(core))
                if not isinstance(message, EngineReady):
                    continue  # statistics of a far core
                found[core] = message
                if self._replicas[core].is_far:
                    self._adopt_far(core, message)
                else:
                    self._replicas[core].state = State.UP
                logger.info(
                    "%s is up (process %d, %d of %d)",
                    self.name(core),
                    message.pid,
                    len(found),
                    len(self._replicas),
                )
        except BaseException:
            self.abandon()
            raise
        if self._ray_copies is not None:
            self._ray_copies.keep_up()
        self.cores = [found[core] for core in sorted(found)]
        self._balance = make_balance(self._config, self.cores)
        if self._config.spreads_experts:
            self._stopped_cores = StoppedCores(lambda: list(self._processes.values()))

    def stop(self) -> None:
        if not self._stopped:
            if self._ends_with_others:
                self._wait_for_others()
            self._end(PATIENCE_S)

    def _wait_for_others(self) -> None:
        """Until the cores have ended with those that need them."""
        self._ends_with_others = False  # asked again, it does not wait
        for core, replica in self._replicas.items():
            if replica.state is State.UP:
                self._link.send(Shutdown(with_others=True), core)
        up = [self._processes[n] for n, each in self._replicas.items() if each.state is State.UP]
        began_s = time.monotonic()
        is_told = False
        while any(not is_readable(process.sentinel) for process in up):
            up[0].process.join(_TICK_S)
            if not is_told and time.monotonic() - began_s > _TELL_S:
                is_told = True
                logger.info("This program is done, and waits for the others with copies to be")

    def abandon(self) -> None:
        """End cores that are not up yet."""
        self._end(START_PATIENCE_S)
        self.close()

    def _start(self, address: CoreAddress) -> CoreProcess:
        config = core_config(self._config, self._first + address.number)
        name = self.name(address.number)
        self._link.connect(address)
        process = CoreProcess(self._make_core, config, self.addresses, address, name)
        self._link.watch(process.sentinel, address.number)
        return process

    def _end(self, patience_s: float) -> None:
        with self._starting:
            was_running, self._stopped = not self._stopped, True
        atexit.unregister(self._at_exit)
        if self._meeting is not None:
            self._meeting.expect_end()
        if was_running:
            for core in self._processes:
                self._link.send(Shutdown(), core)
            self._link.wake()
        if self._stopped_cores is not None:
            self._stopped_cores.close()
        self._leave_others()
        end_all(list(self._processes.values()), patience_s)
        self._close_meeting()

    def _close_meeting(self) -> None:
        if self._meeting is not None:
            self._meeting.close()

    def _leave_others(self) -> None:
        """End what other machines have for this one, and remove what they were met with."""
        if self._far_copies is not None:
            self._far_copies.stop()
        if self._ray_copies is not None:
            self._ray_copies.stop()
        self._scratch.remove()

    def _how_it_ended(self, core: int) -> str:
        return self._processes[core].how_it_ended()

    def _has_ended(self, core: int) -> bool:
        return is_readable(self._processes[core].sentinel)

    def _after_loss(self, core: int, was_up: bool) -> None:
        self._restart(core, was_up)
        self._check_some_are_left()

    def _restart(self, core: int, was_up: bool) -> None:
        """Start a core again that has ended, or give it up."""
        before = self._processes[core]
        end_all([before])
        before.address.remove_files()
        if was_up:
            self._failed_starts[core] = 0
        elif not before.ended_with_others:
            self._failed_starts[core] += 1
        address = before.address.next_life()
        while self._failed_starts[core] < MOST_STARTS:
            try:
                self._start_again(core, address)
                return
            except OSError as error:
                self._failed_starts[core] += 1
                logger.error("%s cannot be started again: %s", self.name(core), error)
                time.sleep(PAUSE_S)
        self._replicas[core].is_given_up = True
        logger.error("%s is given up after %d starts", self.name(core), MOST_STARTS)

    def _start_again(self, core: int, address: CoreAddress) -> None:
        with self._starting:
            if self._stopped:
                return
            process = self._processes[core] = self._start(address)
        with self._lock:
            replica = self._replicas[core]
            replica.address, replica.pulse = process.address, process.pulse
            replica.state, replica.is_silent = State.STARTING, False
        logger.info("%s is started again (process %d)", self.name(core), process.pid)

    def _adopt(self, core: int, ready: EngineReady) -> bool:
        """The core that this process has started is up."""
        if ready.life != self._replicas[core].address.life:
            return False
        with self._lock:
            self._up(core, ready)
        return True
