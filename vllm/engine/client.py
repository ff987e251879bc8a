"""How a front end reaches its engine core: in this process, or in one of its own."""

from __future__ import annotations

import atexit
import multiprocessing.util  # noqa: F401 - its exit hook joins children: it must come before ours
import queue
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Protocol

from vllm.config.vllm import VllmConfig
from vllm.engine.addresses import Addresses, CoreAddress
from vllm.engine.core_handle import (
    PATIENCE_S,
    START_PATIENCE_S,
    CoreProcess,
    end_all,
    start_error,
)
from vllm.engine.core_process import CoreMaker, make_engine_core
from vllm.engine.front_link import FrontLink
from vllm.engine.heartbeat import OwnPulse, Pulse
from vllm.engine.scratch import Scratch
from vllm.errors import EngineDeadError
from vllm.messages.engine import (
    CallResult,
    EngineDead,
    EngineReady,
    FromEngine,
    Shutdown,
    ToEngine,
)
from vllm.utils.open_files import need_open_files
from vllm.utils.spawning import refuse_while_imported


class EngineClient(Protocol):
    """One thread may send and another receive."""

    cores: Sequence[EngineReady]  # what each of them measured, by number
    is_remote: bool  # messages are encoded: functions cannot be sent

    @property
    def pulse(self) -> Pulse:
        """Signs of life of the cores."""
        ...

    def send(self, message: ToEngine) -> None: ...

    def receive(self) -> FromEngine | None:
        """The next message, waiting for it. None after `stop`. Raises EngineDeadError."""
        ...

    def settle(self) -> None:
        """Nobody will receive for a while: finish what the core has begun."""
        ...

    def stop(self) -> None:
        """End the core; a `receive` of another thread returns None. May be called again."""
        ...

    def close(self) -> None:
        """Give back what sending and receiving used: nobody does any more."""
        ...


class InProcessClient:
    """Runs the core where messages are received: it computes only while somebody waits for it."""

    is_remote = False
    pulse: Pulse = OwnPulse()

    def __init__(self, config: VllmConfig, make_core: CoreMaker | None = None) -> None:
        self._stopped = True  # until there is something to stop
        self._inbox: queue.SimpleQueue[ToEngine] = queue.SimpleQueue()
        self._answers: list[CallResult] = []
        self._dead: EngineDeadError | None = None
        self.core = (make_core or make_engine_core)(config)
        self.cores: Sequence[EngineReady] = (self.core.ready,)
        self._stopped = False
        self._at_exit = stop_at_exit(self)

    def __del__(self) -> None:
        self.stop()

    def send(self, message: ToEngine) -> None:
        self._inbox.put(message)

    def receive(self) -> FromEngine | None:
        with self._deadly():
            while self._take_in():
                if self._answers:
                    return self._answers.pop(0)
                updates = self.core.step()
                if updates is not None:
                    return updates
            return None

    def settle(self) -> None:
        if self._dead is None:
            with self._deadly():
                while self._take_in(wait=False) and self.core.has_work:
                    self.core.step()

    def stop(self) -> None:
        if not self._stopped:
            self._stopped = True
            atexit.unregister(self._at_exit)
            self._inbox.put(Shutdown())
            self.core.stop()

    def close(self) -> None:
        """Nothing is held but memory."""

    def _take_in(self, wait: bool = True) -> bool:
        """Hand the core what was sent; False once it is shut down."""
        while True:
            idle = wait and not self.core.has_work and not self._answers
            try:
                message = self._inbox.get(block=idle)
            except queue.Empty:
                return True
            if isinstance(message, Shutdown):
                return False
            answer = self.core.handle(message)
            if answer is not None:
                self._answers.append(answer)

    @contextmanager
    def _deadly(self) -> Iterator[None]:
        """What the core raises is the end of it."""
        if self._dead is not None:
            raise self._dead
        try:
            yield
        except Exception as error:
            self._dead = EngineDeadError(f"the engine failed: {type(error).__name__}: {error}")
            raise self._dead from error


class LivingCore(NamedTuple):
    """A core that is up."""

    address: CoreAddress
    ready: EngineReady


class ProcessClient:
    """Runs the core in a spawned process, over sockets in a directory of ours.

    It is front end 0 of the core; others attach themselves at the addresses after the first.
    """

    is_remote = True

    def __init__(
        self,
        config: VllmConfig,
        make_core: CoreMaker | None = None,
        num_others: int = 0,
        wait: bool = True,
    ) -> None:
        """Waits until the core is up, or leaves that to a call of `wait_until_ready`.

        Raises ConfigError, LoadError or EngineDeadError.
        """
        self._stopped = True  # until there is something to stop
        refuse_while_imported()
        need_open_files()
        self._scratch = Scratch()
        self.directory = self._scratch.path
        self.addresses = Addresses.of(self.directory, 1 + num_others)
        address = CoreAddress(self.directory)
        self._link = FrontLink(self.addresses, 0)
        self._link.connect(address)
        self._at_exit = stop_at_exit(self)
        self._core = CoreProcess(make_core or make_engine_core, config, self.addresses, address)
        self._stopped = False
        self.pulse: Pulse = self._core.pulse
        self.cores: Sequence[EngineReady] = ()  # once it is up
        self._link.watch(self._core.sentinel)
        if wait:
            self.wait_until_ready()

    def __del__(self) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        return self._core.pid

    @property
    def living_cores(self) -> Sequence[LivingCore]:
        """What other front ends need to attach themselves."""
        return [LivingCore(self._core.address, *self.cores)]

    def send(self, message: ToEngine) -> None:
        self._link.send(message)

    def receive(self) -> FromEngine | None:
        return unless_dead(self._next())

    def settle(self) -> None:
        """The core goes on by itself."""

    def stop(self) -> None:
        if not self._stopped:
            self.send(Shutdown())
            self._end(PATIENCE_S)

    def close(self) -> None:
        self._link.close()

    def _end(self, patience_s: float) -> None:
        was_running, self._stopped = not self._stopped, True
        atexit.unregister(self._at_exit)
        self._scratch.remove()
        if was_running:
            end_all([self._core], patience_s)

    def wait_until_ready(self) -> None:
        """Before anything is received. Raises as the constructor does, and gives up the core."""
        try:
            first = self._next()
            if isinstance(first, EngineDead):
                raise start_error(first)
            assert isinstance(first, EngineReady), first
            self.cores = (first,)
        except BaseException:
            self.abandon()
            raise

    def abandon(self) -> None:
        """End a core that is not up yet."""
        # A core that failed ends by itself; killed, it would leave semaphores behind.
        self._end(START_PATIENCE_S)
        self.close()

    def _next(self) -> FromEngine | None:
        message = self._link.receive().message
        if message is not None or self._stopped:
            return message
        raise EngineDeadError(self._core.how_it_ended())


def unless_dead(message: FromEngine | None) -> FromEngine | None:
    """`message`; raises EngineDeadError if it is the last one of a core."""
    if isinstance(message, EngineDead):
        raise EngineDeadError(f"the engine core failed: {message.error}")
    return message


def stop_at_exit(client: EngineClient) -> Callable[[], None]:
    """At exit multiprocessing waits for children that are no daemons: end the core before."""
    reference = weakref.ref(client)

    def stop() -> None:
        alive = reference()
        if alive is not None:
            alive.stop()

    atexit.register(stop)
    return stop
