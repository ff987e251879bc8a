"""Cores of several copies of the model that another process of ours starts, and starts again."""

from __future__ import annotations

import os

from vllm.config.vllm import VllmConfig
from vllm.engine.attached import Attachment
from vllm.engine.balance import make_balance
from vllm.engine.front_link import FrontLink, is_readable
from vllm.engine.heartbeat import OwnPulse, ProcessPulse
from vllm.engine.replicas import Replica, Replicas, State
from vllm.messages.engine import EngineReady


class AttachedReplicas(Replicas):
    """Hears of a core that was started again from its first message, which every front end gets."""

    def __init__(self, config: VllmConfig, attachment: Attachment) -> None:
        link = FrontLink(attachment.addresses, attachment.front_end)
        super().__init__(link, config)
        self._is_closed = False
        self._pid_files: dict[int, int] = {}  # by core
        self.cores = [living.ready for living in attachment.cores]
        self._balance = make_balance(config, self.cores)
        for address, ready in attachment.cores:
            is_far = bool(ready.endpoint)
            # What it has been till now does not matter: it is adopted, or waited for.
            known = address._replace(life=ready.life)
            self._replicas[address.number] = Replica(known, OwnPulse(), State.GONE, is_far)
            if is_far:
                self._adopt_far(address.number, ready)
            else:
                self._adopt(address.number, ready)

    def stop(self) -> None:
        """Leave the cores: they go on for the others."""
        if not self._stopped:
            self._stopped = True
            self._link.wake()

    def close(self) -> None:
        super().close()
        if self._is_closed:
            return
        self._is_closed = True
        for fd in self._pid_files.values():
            os.close(fd)

    def _adopt(self, core: int, ready: EngineReady) -> bool:
        address = self._replicas[core].address._replace(life=ready.life)
        try:
            pulse = ProcessPulse(address.heartbeat, ready.pid)
            pid_file = os.pidfd_open(ready.pid)
        except OSError:
            return False
        self._link.connect(address)
        self._link.watch(pid_file, core)
        before = self._pid_files.get(core)
        self._pid_files[core] = pid_file
        if before is not None:
            os.close(before)
        with self._lock:
            replica = self._replicas[core]
            replica.address, replica.pulse, replica.is_silent = address, pulse, False
            self._up(core, ready)
        return True

    def _how_it_ended(self, core: int) -> str:
        return f"{self.name(core)} (process {self.cores[core].pid}) is gone"

    def _has_ended(self, core: int) -> bool:
        return is_readable(self._pid_files[core])

    def _after_loss(self, core: int, was_up: bool) -> None:
        """The process that has started the core starts it again."""
