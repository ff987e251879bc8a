"""Several engine cores behind one front end: each has a copy of the model, and caches of its own.

A core that ends takes its own requests with it and no others.
"""

from __future__ import annotations

import enum
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from vllm.config.vllm import VllmConfig
from vllm.engine.addresses import CoreAddress
from vllm.engine.balance import Balance, Prompt
from vllm.engine.front_link import NO_CORE, FrontLink
from vllm.engine.heartbeat import LIMIT_S, FarPulse, Pulse
from vllm.errors import EngineDeadError
from vllm.logger import init_logger
from vllm.messages.engine import (
    Abort,
    Call,
    CallResult,
    EngineDead,
    EngineReady,
    EngineRequest,
    EngineStats,
    FinishReason,
    FromEngine,
    RequestUpdate,
    StepUpdates,
    ToEngine,
)

logger = init_logger(__name__)

# Silence from which on a core gets no requests. It beats every second.
SILENT_S: Final = 5.0


class State(enum.Enum):
    STARTING = enum.auto()  # takes messages, which wait for it
    UP = enum.auto()
    GONE = enum.auto()


@dataclass(slots=True)
class Replica:
    """One core, as its front end sees it."""

    address: CoreAddress
    pulse: Pulse
    state: State
    is_far: bool = False  # on another machine, which starts it and tells of its end
    is_silent: bool = False
    is_given_up: bool = False
    error: str = ""  # that it has said it ends with
    lost_life: int = -1  # the last one that has ended


class Replicas(ABC):
    """Implements EngineClient. Subclasses know how the cores are started.

    Cores are numbered from 0; users see the numbers of their copies.
    """

    is_remote = True

    _balance: Balance  # once the cores are up

    def __init__(self, link: FrontLink, config: VllmConfig) -> None:
        self.cores: Sequence[EngineReady] = ()
        self._link = link
        self._first = config.parallel.data_parallel_start_rank
        self._need_each_other = config.spreads_experts
        self._replicas: dict[int, Replica] = {}  # by number
        self._stopped = False
        self._lock = threading.Lock()  # of all below, which sending and receiving use
        self._owners: dict[str, int] = {}  # core by request
        self._open_calls: dict[int, set[int]] = {}  # cores that have not answered, by call
        self._made_here: deque[FromEngine] = deque()  # answers for cores that have ended

    @property
    def pulse(self) -> Pulse:
        replicas = self._replicas.values()
        up = [replica.pulse for replica in replicas if replica.state is State.UP]
        return ReplicaPulse([replica.pulse for replica in replicas], up)

    def name(self, core: int) -> str:
        """For people."""
        return f"engine core {self._first + core}"

    # -- EngineClient -----------------------------------------------------------------------------

    def send(self, message: ToEngine) -> None:
        """Raises EngineDeadError if no core can take a request."""
        # It takes longest, and needs no lock.
        prompt = self._balance.read(message) if isinstance(message, EngineRequest) else None
        with self._lock:
            match message:
                case EngineRequest():
                    assert prompt is not None
                    self._send_request(message, prompt)
                case Abort(request_ids):
                    for core, ids in self._by_owner(request_ids).items():
                        self._link.send(Abort(ids), core)
                case Call():
                    self._send_call(message)

    def receive(self) -> FromEngine | None:
        while not self._made_here:
            core, message, life = self._link.receive()
            if message is None:
                if self._stopped:
                    return None
                if core != NO_CORE:
                    self._lose(core)
                continue
            replica = self._replicas.get(core)
            if replica is None:
                continue
            if isinstance(message, EngineReady):
                self._hear_ready(core, message)
                continue
            if isinstance(message, EngineDead) and message.is_final:
                self._give_up(core, message.error)
                continue
            # What a life says that has ended here would count again.
            if replica.state is State.GONE or life != replica.address.life % 256:
                continue
            if (taken := self._take(core, message)) is not None:
                return taken
        return self._made_here.popleft()

    def settle(self) -> None:
        """The cores go on by themselves."""

    @abstractmethod
    def stop(self) -> None: ...

    def close(self) -> None:
        self._link.close()

    # -- cores that come and go -------------------------------------------------------------------

    @abstractmethod
    def _how_it_ended(self, core: int) -> str:
        """For people: what became of a core whose process has ended."""

    @abstractmethod
    def _has_ended(self, core: int) -> bool:
        """Whether the process of a core has ended, which `receive` may not have seen."""

    @abstractmethod
    def _after_loss(self, core: int, was_up: bool) -> None:
        """A core has ended; its requests have failed. Raises EngineDeadError if none is left."""

    @abstractmethod
    def _adopt(self, core: int, ready: EngineReady) -> bool:
        """Use a life of a core of this machine from now on; False if it has ended already."""

    def _hear_ready(self, core: int, ready: EngineReady) -> None:
        """A life of a core is up."""
        replica = self._replicas[core]
        is_known = replica.state is State.UP and ready.life == replica.address.life
        if is_known or ready.life <= replica.lost_life:
            return
        if replica.state is State.UP:
            self._lose(core)
        if replica.is_far:
            self._adopt_far(core, ready)
        elif not self._adopt(core, ready):
            return
        where = " of another machine" if replica.is_far else ""
        logger.info("%s is up (process %d%s)", self.name(core), ready.pid, where)

    def _adopt_far(self, core: int, ready: EngineReady) -> None:
        """Use a core of another machine."""
        before = self._replicas[core].address
        address = before._replace(life=ready.life, endpoint=ready.endpoint)
        self._link.connect(address)
        pulse = FarPulse(address.heartbeat)
        pulse.note(0.0)
        with self._lock:
            replica = self._replicas[core]
            replica.address, replica.pulse = address, pulse
            replica.is_silent = False
            self._up(core, ready)

    def _lose(self, core: int) -> None:
        replica = self._replicas[core]
        was_up = replica.state is State.UP
        if replica.is_far:
            why = replica.error or f"{self.name(core)} was started again"
        else:
            why = self._how_it_ended(core)
            if replica.error:
                why += f": {replica.error}"
        with self._lock:
            replica.state, replica.error = State.GONE, ""
            replica.lost_life = replica.address.life
            self._balance.reset(core)
            request_ids = [each for each, owner in self._owners.items() if owner == core]
            logger.error("%s; requests that end with it: %d", why, len(request_ids))
            self._fail_requests(core, request_ids, why)
            for call_id in [each for each, missing in self._open_calls.items() if core in missing]:
                self._note_answer(call_id, core)
                self._made_here.append(CallResult(call_id, error=why, core=core))
        if not replica.is_far:
            self._after_loss(core, was_up)

    def _give_up(self, core: int, why: str) -> None:
        """Nobody starts this far core again. Raises EngineDeadError if none is left."""
        replica = self._replicas[core]
        if replica.state is not State.GONE:
            replica.error = replica.error or why
            self._lose(core)
        replica.is_given_up = True
        self._check_some_are_left()

    def _check_some_are_left(self) -> None:
        """Raises EngineDeadError if nobody starts any core again, or one that all others need."""
        given_up = [core for core, each in self._replicas.items() if each.is_given_up]
        if len(given_up) == len(self._replicas):
            raise EngineDeadError("no engine core could be started again")
        if given_up and self._need_each_other:
            raise EngineDeadError(
                f"{self.name(given_up[0])} could not be started again, and the others share "
                "experts with it"
            )

    def _fail_requests(self, core: int, request_ids: Iterable[str], why: str) -> None:
        updates = [
            RequestUpdate(request_id, [], finish_reason=FinishReason.ERROR, error=why)
            for request_id in request_ids
        ]
        for update in updates:
            del self._owners[update.request_id]
        self._made_here.append(StepUpdates(updates, EngineStats(), time.monotonic(), core=core))

    def _up(self, core: int, ready: EngineReady) -> None:
        """A core takes requests from now on."""
        self._replicas[core].state = State.UP
        self.cores = [ready if i == core else each for i, each in enumerate(self.cores)]

    # -- messages ---------------------------------------------------------------------------------

    def _send_request(self, request: EngineRequest, prompt: Prompt) -> None:
        usable = self._usable() if request.core is None else self._reachable([request.core])
        if not usable:
            raise EngineDeadError(self._why_gone(request.core))
        core, num_uncached = self._balance.place(request, usable, prompt)
        request = msgspec.structs.replace(request, num_uncached=num_uncached)
        self._owners[request.request_id] = core
        try:
            self._link.send(request, core)
        except BaseException:
            del self._owners[request.request_id]
            self._balance.withdraw(request.request_id)
            raise

    def _why_gone(self, core: int | None) -> str:
        """For people: why a core, or all of them, take nothing."""
        if core is None:
            return "Every engine core has ended and is being started again. Try again later."
        if self._replicas[core].is_given_up:
            return f"{self.name(core)} has ended, and does not start again. Restart the server."
        return f"{self.name(core)} has ended and is being started again. Try again later."

    def _usable(self) -> list[int]:
        """Cores that may get a request: the best there are."""
        up = [
            core
            for core, each in self._replicas.items()
            if each.state is State.UP and (each.is_far or not self._has_ended(core))
        ]
        lively = [core for core in up if not self._is_silent(core)]
        return lively or up or self._reachable(self._replicas)

    def _reachable(self, cores: Iterable[int]) -> list[int]:
        return [core for core in cores if self._replicas[core].state is not State.GONE]

    def _is_silent(self, core: int) -> bool:
        replica = self._replicas[core]
        silence_s = replica.pulse.silence_s()
        is_silent = silence_s > SILENT_S
        if is_silent != replica.is_silent:
            replica.is_silent = is_silent
            if is_silent:
                logger.warning(
                    "%s has given no sign of life for %.0f s: new requests go to others, and those "
                    "that it has wait",
                    self.name(core),
                    silence_s,
                )
            else:
                logger.info("%s gives signs of life again", self.name(core))
        return is_silent

    def _by_owner(self, request_ids: Iterable[str]) -> dict[int, list[str]]:
        by_core: dict[int, list[str]] = {}
        for request_id in request_ids:
            core = self._owners.get(request_id)
            if core is not None:
                by_core.setdefault(core, []).append(request_id)
        return by_core

    def _send_call(self, call: Call) -> None:
        """Raises EngineDeadError if a core is gone: a call is of all of them."""
        for core, replica in self._replicas.items():
            if replica.state is State.GONE:
                raise EngineDeadError(self._why_gone(core))
        self._open_calls[call.call_id] = set(self._replicas)
        self._send_all(call)

    def _send_all(self, message: ToEngine) -> None:
        for core in self._replicas:
            self._link.send(message, core)

    def _take(self, core: int, message: FromEngine) -> FromEngine | None:
        """What a core says, for the front end if it is."""
        match message:
            case StepUpdates():
                message.core = core
                if self._replicas[core].is_far:
                    message.time_s = time.monotonic()  # its own is of another machine's clock
                with self._lock:
                    for update in message.updates:
                        if update.finish_reason is not None:
                            self._owners.pop(update.request_id, None)
                    self._balance.update(message)
                return message
            case CallResult(call_id):
                with self._lock:
                    self._note_answer(call_id, core)
                return msgspec.structs.replace(message, core=core)
            case EngineDead(error):
                self._replicas[core].error = error
                if self._replicas[core].is_far:
                    self._lose(core)
        return None

    def _note_answer(self, call_id: int, core: int) -> None:
        missing = self._open_calls.get(call_id, set())
        missing.discard(core)
        if not missing:
            self._open_calls.pop(call_id, None)


class ReplicaPulse:
    """Signs of life of several cores, which hang when all that are up do."""

    def __init__(self, pulses: Sequence[Pulse], up: Sequence[Pulse]) -> None:
        """`pulses` of all cores, by number; `up`: of those that are up."""
        self._pulses = pulses
        self._up = up

    def silence_s(self) -> float:
        """Since the last sign of life of any core."""
        return min(self.silences_s())

    def silences_s(self) -> list[float]:
        return [pulse.silence_s() for pulse in self._pulses]

    async def has_stopped(self) -> bool:
        # A closer look at one that is silent takes seconds.
        if not self._up or min(pulse.silence_s() for pulse in self._up) <= LIMIT_S:
            return False
        return all([await pulse.has_stopped() for pulse in self._up])
