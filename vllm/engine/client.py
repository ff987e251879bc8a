"""How a front end reaches its engine core: in this process, or in one of its own."""

from __future__ import annotations

import atexit
import multiprocessing
import multiprocessing.util  # its exit hook joins children: it must be registered before ours
import os
import queue
import signal
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.context import SpawnProcess
from typing import Final, NamedTuple, Protocol

from vllm.config.vllm import VllmConfig
from vllm.engine.addresses import Addresses
from vllm.engine.core_process import CoreMaker, core_main, make_engine_core
from vllm.engine.early_core import CORE_NAME, take
from vllm.engine.front_link import FrontLink
from vllm.engine.heartbeat import OwnPulse, ProcessPulse, Pulse, make_file
from vllm.engine.scratch import Scratch
from vllm.errors import ConfigError, EngineDeadError, LoadError, NotAvailable
from vllm.logger import init_logger
from vllm.messages.engine import (
    CallResult,
    EngineDead,
    EngineReady,
    FromEngine,
    Shutdown,
    ToEngine,
)
from vllm.utils.open_files import need_open_files
from vllm.utils.spawning import IMPORTED, IMPORTED_EXIT, refuse_while_imported, undisturbed

logger = init_logger(__name__)

PATIENCE_S: Final = 5.0  # for a core to end by itself before it is terminated, and then killed
START_PATIENCE_S: Final = 2.0  # the same, for one that is not up yet
START_ERRORS: Final = {cls.__name__: cls for cls in (ConfigError, LoadError, NotAvailable)}


class EngineClient(Protocol):
    """One thread may send and another receive."""

    ready: EngineReady
    cores: Sequence[EngineReady]  # what each has measured
    is_remote: bool  # messages are encoded: functions cannot be sent
    pulse: Pulse  # of the core

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
        self.ready = self.core.ready
        self.cores: Sequence[EngineReady] = (self.ready,)
        self._stopped = False
        self._at_exit = _stop_at_exit(self)

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


class ProcessClient:
    """Runs the core in a spawned process, over sockets in a directory of ours.

    It is front end 0 of the core; others attach themselves at the addresses after the first.
    """

    is_remote = True

    ready: EngineReady

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
        make_file(self.directory)
        self.addresses = Addresses(
            self.directory,
            f"ipc://{self.directory}/to-core",
            tuple(f"ipc://{self.directory}/from-core-{i}" for i in range(1 + num_others)),
        )
        self._link = FrontLink(self.addresses, 0)
        self._at_exit = _stop_at_exit(self)
        self._process = _start(make_core or make_engine_core, config, self.addresses)
        self._stopped = False
        self.pulse: Pulse = ProcessPulse(self.directory, self.pid)
        self._link.watch(self._process.sentinel)
        if wait:
            self.wait_until_ready()

    def __del__(self) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def send(self, message: ToEngine) -> None:
        self._link.send(message)

    def receive(self) -> FromEngine | None:
        return _unless_dead(self._next())

    def settle(self) -> None:
        """The core goes on by itself."""

    def stop(self) -> None:
        if not self._stopped:
            self.send(Shutdown())
            self._end((self._process.terminate, self._process.kill), PATIENCE_S)

    def close(self) -> None:
        self._link.close()

    def _end(self, escalation: Sequence[Callable[[], None]], patience_s: float) -> None:
        was_running, self._stopped = not self._stopped, True
        atexit.unregister(self._at_exit)
        self._scratch.remove()
        if not was_running:
            return
        for escalate in escalation:
            self._process.join(patience_s)
            if not self._process.is_alive():
                return
            escalate()
        self._process.join()

    def wait_until_ready(self) -> None:
        """Before anything is received. Raises as the constructor does, and gives up the core."""
        try:
            self.ready = self._first_word()
            self.cores: Sequence[EngineReady] = (self.ready,)
        except BaseException:
            self.abandon()
            raise

    def abandon(self) -> None:
        """End a core that is not up yet."""
        # A core that failed ends by itself; killed, it would leave semaphores behind.
        self._end((self._process.terminate, self._process.kill), START_PATIENCE_S)
        self.close()

    def _first_word(self) -> EngineReady:
        first = self._next()
        if isinstance(first, EngineDead):
            known = START_ERRORS.get(first.kind)
            if known is not None:
                raise known(first.error)
            raise EngineDeadError(f"the engine core did not start: {first.error}")
        assert isinstance(first, EngineReady), first
        return first

    def _next(self) -> FromEngine | None:
        message = self._link.receive()
        if message is not None or self._stopped:
            return message
        self._process.join(1.0)  # its sentinel fires a moment before its exit code is known
        if self._process.exitcode == IMPORTED_EXIT:
            raise ConfigError(IMPORTED)
        raise EngineDeadError(self._obituary())

    def _obituary(self) -> str:
        code = self._process.exitcode
        if code is None:
            how = "closed its sockets"
        elif code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
        else:
            how = f"ended with exit code {code}"
        return f"the engine core (process {self._process.pid}) {how}"


def _start(make_core: CoreMaker, config: VllmConfig, addresses: Addresses) -> SpawnProcess:
    """The process of a core: one that waits for it, or a new one."""
    early = take()
    if early is not None:
        early.order(core_main, make_core, config, addresses)
        return early.process
    # Not a daemon: a daemon may not have children, and the ranks are the core's.
    process = multiprocessing.get_context("spawn").Process(
        target=core_main, args=(make_core, config, addresses), name=CORE_NAME
    )
    with undisturbed():
        process.start()
    return process


class Attachment(NamedTuple):
    """What one more front end, in a process of its own, needs to use a core."""

    addresses: Addresses
    front_end: int  # from 1: 0 is the one that started the core
    pid: int  # of the core
    ready: EngineReady


class AttachedClient:
    """Uses a core that another process of ours started, and ends."""

    is_remote = True

    def __init__(self, attachment: Attachment) -> None:
        """Raises EngineDeadError."""
        self.ready = attachment.ready
        self.cores: Sequence[EngineReady] = (self.ready,)
        self._pid = attachment.pid
        self._stopped = False
        try:
            self.pulse: Pulse = ProcessPulse(attachment.addresses.directory, attachment.pid)
        except FileNotFoundError:
            raise EngineDeadError(self._obituary()) from None
        self._wake_reader, self._wake_writer = os.pipe()
        self._link = FrontLink(attachment.addresses, attachment.front_end)
        try:
            self._core_fd = os.pidfd_open(attachment.pid)
        except OSError:
            self._link.close()
            raise EngineDeadError(self._obituary()) from None
        self._link.watch(self._core_fd, self._wake_reader)

    def send(self, message: ToEngine) -> None:
        self._link.send(message)

    def receive(self) -> FromEngine | None:
        message = _unless_dead(self._link.receive())
        # The first message of a core comes to each front end.
        while isinstance(message, EngineReady):
            message = _unless_dead(self._link.receive())
        if message is None and not self._stopped:
            raise EngineDeadError(self._obituary())
        return message

    def settle(self) -> None:
        """The core goes on by itself."""

    def stop(self) -> None:
        """Leave the core: it goes on for the others."""
        if not self._stopped:
            self._stopped = True
            os.write(self._wake_writer, b"\0")

    def close(self) -> None:
        self._link.close()
        for fd in (self._wake_reader, self._wake_writer, self._core_fd):
            os.close(fd)

    def _obituary(self) -> str:
        return f"the engine core (process {self._pid}) is gone"


def _unless_dead(message: FromEngine | None) -> FromEngine | None:
    if isinstance(message, EngineDead):
        raise EngineDeadError(f"the engine core failed: {message.error}")
    return message


def _stop_at_exit(client: EngineClient) -> Callable[[], None]:
    """At exit multiprocessing waits for children that are no daemons: end the core before."""
    reference = weakref.ref(client)

    def stop() -> None:
        alive = reference()
        if alive is not None:
            alive.stop()

    atexit.register(stop)
    return stop
