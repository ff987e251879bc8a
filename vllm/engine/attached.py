"""How a front end in a process of its own uses cores that another process has started."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

from vllm.engine.addresses import Addresses
from vllm.engine.client import LivingCore, unless_dead
from vllm.engine.front_link import FrontLink
from vllm.engine.heartbeat import ProcessPulse, Pulse
from vllm.errors import EngineDeadError
from vllm.messages.engine import EngineReady, FromEngine, ToEngine


class Attachment(NamedTuple):
    """What one more front end, in a process of its own, needs to use cores."""

    addresses: Addresses
    front_end: int  # from 1: 0 is the one that started the cores
    cores: tuple[LivingCore, ...]


class AttachedClient:
    """Uses a core that another process of ours started, and ends."""

    is_remote = True

    def __init__(self, attachment: Attachment) -> None:
        """Raises EngineDeadError."""
        ((address, ready),) = attachment.cores
        self.cores: Sequence[EngineReady] = (ready,)
        self._pid = ready.pid
        self._stopped = self._is_closed = False
        try:
            self.pulse: Pulse = ProcessPulse(address.heartbeat, self._pid)
        except FileNotFoundError:
            raise EngineDeadError(self._how_it_ended()) from None
        self._link = FrontLink(attachment.addresses, attachment.front_end)
        self._link.connect(address)
        try:
            self._core_fd = os.pidfd_open(self._pid)
        except OSError:
            self._link.close()
            raise EngineDeadError(self._how_it_ended()) from None
        self._link.watch(self._core_fd)

    def send(self, message: ToEngine) -> None:
        self._link.send(message)

    def receive(self) -> FromEngine | None:
        message = unless_dead(self._link.receive().message)
        # The first message of a core comes to each front end.
        while isinstance(message, EngineReady):
            message = unless_dead(self._link.receive().message)
        if message is None and not self._stopped:
            raise EngineDeadError(self._how_it_ended())
        return message

    def settle(self) -> None:
        """The core goes on by itself."""

    def stop(self) -> None:
        """Leave the core: it goes on for the others."""
        if not self._stopped:
            self._stopped = True
            self._link.wake()

    def close(self) -> None:
        self._link.close()
        if self._is_closed:
            return
        self._is_closed = True
        os.close(self._core_fd)

    def _how_it_ended(self) -> str:
        return f"the engine core (process {self._pid}) is gone"
