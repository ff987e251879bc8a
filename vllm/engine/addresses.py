"""Where the processes of one engine meet."""

from __future__ import annotations

import os
import socket
import struct
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Final, NamedTuple

from vllm.envs import Environment

if TYPE_CHECKING:
    from vllm.config.parallel import ParallelConfig

# What messages to a core begin with, if they are not of a front end.
SIBLING: Final = 255
# What messages of a core begin with: its number, and the lowest byte of its life.
TAG: Final = struct.Struct("=HB")


class Addresses(NamedTuple):
    """What leaves a core has one address per front end, which all cores share."""

    directory: str  # they are in, and other files that processes share
    from_core: tuple[str, ...]  # each bound by its front end
    from_far: tuple[str, ...] = ()  # the same, for cores of other machines; none: there are none

    @classmethod
    def of(cls, directory: str, num_front_ends: int) -> Addresses:
        """Addresses of an engine whose files are in `directory`."""
        inboxes = (f"ipc://{directory}/from-core-{index}" for index in range(num_front_ends))
        return cls(directory, tuple(inboxes))

    def reached_from(self, host: str) -> Addresses:
        """With ports of this machine, whose address is `host`, for cores of other machines.

        Raises OSError if this machine has no such address.
        """
        ports = free_ports(host, len(self.from_core))
        return self._replace(from_far=tuple(f"tcp://{in_url(host)}:{port}" for port in ports))


class CoreAddress(NamedTuple):
    """One life of a core. A core that is started again has other files, so that nothing meant for
    the life before reaches it."""

    directory: str
    number: int = 0  # among the cores of the engine
    life: int = 0  # how often it has been started before
    host: str = ""  # of the core's machine, for front ends on others; "": there are none
    endpoint: str = ""  # where a core of another machine is reached
    meeting: str = ""  # word@host:port, where it meets cores with which it shares experts

    @property
    def to_core(self) -> str:
        """Bound by the core."""
        if self.host:
            return f"tcp://{in_url(self.host)}:*"
        return self.endpoint or f"ipc://{self.directory}/to-core-{self.number}-{self.life}"

    @property
    def heartbeat(self) -> str:
        """The file of its signs of life."""
        return f"{self.directory}/heartbeat-{self.number}-{self.life}"

    @property
    def up(self) -> str:
        """A file that is there once the core is up."""
        return f"{self.heartbeat}-up"

    def remove_files(self) -> None:
        """Remove the files of a life that is over."""
        for path in (self.heartbeat, self.up, self.to_core.removeprefix("ipc://")):
            with suppress(FileNotFoundError):
                os.unlink(path)

    def next_life(self) -> CoreAddress:
        return self._replace(life=self.life + 1)


def host_of(parallel: ParallelConfig) -> str:
    """Address of the machine with the server, as others reach it."""
    return str(Environment().VLLM_HOST_IP) or parallel.data_parallel_address


def in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def free_ports(host: str, count: int) -> list[int]:
    """Ports of this machine at `host`; another program may take them before they are used."""
    with ExitStack() as probes:
        found = []
        for _ in range(count):
            family = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0][0]
            probe = probes.enter_context(socket.socket(family, socket.SOCK_STREAM))
            probe.bind((host, 0))
            found.append(int(probe.getsockname()[1]))
        return found
