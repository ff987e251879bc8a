"""The server's side of copies on other machines: where these come, and how their end shows.

What cores say goes to the front ends directly. A connection per machine carries what remains: who
comes, with which settings, signs of life, and the end of the server.
"""

from __future__ import annotations

import select
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Final

import msgspec

from vllm.engine.addresses import Addresses, CoreAddress, host_of
from vllm.engine.heartbeat import FarPulse
from vllm.engine.inboxes import Inboxes
from vllm.envs import Environment
from vllm.errors import ConfigError
from vllm.executor.handshake import compare_with_first, introduction
from vllm.executor.nodes.arrivals import Arrivals
from vllm.executor.nodes.link import Kind, Link, LinkClosed
from vllm.executor.nodes.meeting import check_own_ip, refuse
from vllm.logger import init_logger
from vllm.messages.copies import CopiesHello, CopiesWelcome, CopySigns
from vllm.messages.engine import EngineDead

if TYPE_CHECKING:
    from vllm.config.parallel import ParallelConfig
    from vllm.config.vllm import VllmConfig

logger = init_logger(__name__)

BEAT_S: Final = 1.0
SILENT_S: Final = 9.0  # of the process that looks after the copies of a machine


@dataclass(slots=True)
class Machine:
    """A machine that has copies."""

    link: Link
    numbers: range
    name: str  # for people
    lives: dict[int, int]  # of its copies, as far as it was said
    heard_s: float = field(default_factory=time.monotonic)


class FarCopies:
    """Owns a thread, which waits for machines and looks after those that have come."""

    def __init__(
        self, config: VllmConfig, addresses: Addresses, numbers: range, meeting: str = ""
    ) -> None:
        """`numbers`: of the copies that other machines have. `meeting`: where all copies meet, if
        they share experts. Raises ConfigError."""
        env = Environment()
        check_own_ip(str(env.VLLM_HOST_IP))
        self._settings = introduction(config)
        self._parallel = config.parallel
        self._numbers = numbers
        self._meeting = meeting
        self._arrivals = _arrivals(config.parallel)
        self.addresses = _reached(addresses, config.parallel)
        self._inboxes = Inboxes(addresses.from_core)
        self._machines: dict[int, Machine] = {}
        self._lives = dict.fromkeys(numbers, 0)  # the next one of each copy
        self._pulses: dict[tuple[int, int], FarPulse] = {}  # by copy and life
        self._missing = set(numbers)  # have never come
        self._missing_until_s = time.monotonic() + env.VLLM_ENGINE_READY_TIMEOUT_S
        self._limit_s = env.VLLM_ENGINE_READY_TIMEOUT_S
        self._given_up: SimpleQueue[tuple[range, str]] = SimpleQueue()
        self._doomed: dict[int, str] = {}  # why, of those that are given up and not gone
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._run, name="far-copies", daemon=True)
        self._thread.start()

    def give_up(self, numbers: range, why: str) -> None:
        """These copies do not come again once they are gone. Any thread may call it."""
        self._given_up.put((numbers, why))

    def stop(self) -> None:
        """End the copies of all machines. May be called again."""
        if self._ends.is_set():
            return
        self._ends.set()
        self._thread.join()
        for machine in self._machines.values():
            with suppress(LinkClosed):
                machine.link.tell(Kind.STOP)
                machine.link.finish(1.0)
            machine.link.close()
        self._arrivals.close()
        self._inboxes.close()

    # -- the thread -------------------------------------------------------------------------------

    def _run(self) -> None:
        logger.info(
            "Copies %d to %d of the model may come to %s:%d",
            self._numbers.start,
            self._numbers.stop - 1,
            self._parallel.data_parallel_address,
            self._parallel.data_parallel_rpc_port,
        )
        beat_s = 0.0
        while not self._ends.is_set():
            self._take_turn()
            now_s = time.monotonic()
            if now_s - beat_s >= BEAT_S:
                beat_s = now_s
                self._beat(now_s)

    def _take_turn(self) -> None:
        poll = select.poll()
        for fd in (*self._arrivals.filenos(), *self._machines):
            poll.register(fd, select.POLLIN)
        for fd, _ in poll.poll(BEAT_S * 250):
            if fd in self._machines:
                self._hear(fd)
            elif (arrived := self._arrivals.hear(fd)) is not None:
                self._meet(*arrived)

    def _meet(self, link: Link, hello: CopiesHello) -> None:
        numbers = range(hello.first, hello.first + hello.count)
        address = hello.own_ip or link.peer_address
        name = f"the machine with copies {numbers.start} to {numbers.stop - 1} ({address})"
        try:
            self._check(hello, numbers)
            lives = tuple(self._lives[number] for number in numbers)
            welcome = CopiesWelcome(self.addresses.from_far, lives, self._meeting)
            link.limit_unacknowledged()
            link.tell(Kind.WELCOME, msgspec.msgpack.encode(welcome))
        except ConfigError as error:
            logger.error("%s is refused: %s", name, error)
            refuse(link, str(error))
        except (LinkClosed, OSError):
            link.close()
        else:
            logger.info("%s has come", name)
            self._missing -= set(numbers)
            machine = Machine(link, numbers, name, dict(zip(numbers, lives, strict=True)))
            self._machines[link.fileno()] = machine
            for number, life in machine.lives.items():
                self._note_life(machine, number, life)

    def _check(self, hello: CopiesHello, numbers: range) -> None:
        """Raises ConfigError."""
        compare_with_first(self._settings, hello.settings, "the machine with copy", hello.first)
        if hello.count < 1 or numbers[0] not in self._numbers or numbers[-1] not in self._numbers:
            raise ConfigError(
                f"--data-parallel-start-rank {hello.first} --data-parallel-size-local "
                f"{hello.count}: the server waits for copies {self._numbers.start} to "
                f"{self._numbers.stop - 1}, and has the others itself."
            )
        for machine in self._machines.values():
            if taken := sorted({*machine.numbers} & {*numbers}):
                raise ConfigError(
                    f"--data-parallel-start-rank {hello.first}: {machine.name} has copy "
                    f"{taken[0]} already. Give every machine copies of its own."
                )

    def _hear(self, fd: int) -> None:
        machine = self._machines[fd]
        try:
            frames = machine.link.frames()
            signs = [
                sign
                for frame in frames
                if frame.kind is Kind.STATES
                for sign in msgspec.msgpack.decode(frame.payload, type=CopySigns)
            ]
        except (LinkClosed, msgspec.DecodeError) as error:
            self._lose(fd, f"{machine.name} is gone: {error}")
            return
        machine.heard_s = time.monotonic()
        for sign in signs:
            if sign.number in machine.numbers:
                self._note_life(machine, sign.number, sign.life, sign.last_end)
                self._pulses[sign.number, sign.life].note(sign.silence_s)

    def _note_life(self, machine: Machine, number: int, life: int, last_end: str = "") -> None:
        before = machine.lives.get(number, life)
        machine.lives[number] = life
        self._lives[number] = max(self._lives[number], life + 1)
        if (number, life) in self._pulses:
            return
        if before != life:  # what its machine has said of it may be lost, or be slower
            self._inboxes.put(EngineDead(last_end), number, before)
        for known in [key for key in self._pulses if key[0] == number]:
            del self._pulses[known]
            CoreAddress(self.addresses.directory, *known).remove_files()
        path = CoreAddress(self.addresses.directory, number, life).heartbeat
        self._pulses[number, life] = FarPulse(path)

    def _beat(self, now_s: float) -> None:
        self._tell_given_up()
        if self._missing and now_s > self._missing_until_s:
            self._tell_missing()
        for fd, machine in list(self._machines.items()):
            if now_s - machine.heard_s > SILENT_S:
                self._lose(fd, f"{machine.name} gave no sign of life for {SILENT_S:g} s")
                continue
            try:
                machine.link.tell(Kind.BEAT)
            except LinkClosed as closed:
                self._lose(fd, f"{machine.name} is gone: {closed}")

    def _tell_given_up(self) -> None:
        with suppress(Empty):
            while True:
                numbers, why = self._given_up.get_nowait()
                self._doomed.update(dict.fromkeys(numbers, why))
        there = {number for machine in self._machines.values() for number in machine.numbers}
        for number in self._doomed.keys() - there:
            why = self._doomed.pop(number)
            self._inboxes.put(EngineDead(why, is_final=True), number, self._lives[number])

    def _tell_missing(self) -> None:
        number = min(self._missing)
        missing = ", ".join(map(str, sorted(self._missing)))
        self._missing.clear()
        parallel = self._parallel
        text = (
            f"copies {missing} of the model have not come to {parallel.data_parallel_address}:"
            f"{parallel.data_parallel_rpc_port} within {self._limit_s:g} s "
            "(VLLM_ENGINE_READY_TIMEOUT_S). Start them with the same arguments, --headless, "
            "--data-parallel-start-rank and --data-parallel-size-local on their machine, from "
            "which --data-parallel-address and --data-parallel-rpc-port must lead here."
        )
        self._inboxes.put(EngineDead(text, ConfigError.__name__), number, 0)

    def _lose(self, fd: int, why: str) -> None:
        machine = self._machines.pop(fd)
        machine.link.close()
        logger.error("%s", why)
        for number, life in machine.lives.items():
            self._inboxes.put(EngineDead(why), number, life)


def _reached(addresses: Addresses, parallel: ParallelConfig) -> Addresses:
    host = host_of(parallel)
    try:
        return addresses.reached_from(host)
    except OSError as error:
        raise ConfigError(
            f"{host} (VLLM_HOST_IP, or else --data-parallel-address) is no address of this "
            f"machine, which has the server: {error.strerror or error}."
        ) from None


def _arrivals(parallel: ParallelConfig) -> Arrivals[CopiesHello]:
    host, port = parallel.data_parallel_address, parallel.data_parallel_rpc_port
    try:
        return Arrivals(host, port, CopiesHello)
    except OSError as error:
        raise ConfigError(
            f"--data-parallel-address {host} --data-parallel-rpc-port {port}: the server cannot "
            f"listen there ({error.strerror}). The address must be one of its machine, and the "
            "port free."
        ) from None
