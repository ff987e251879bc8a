"""Where the processes of one engine meet."""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

# What messages of a core begin with: its number, and the lowest byte of its life.
TAG: Final = struct.Struct("=HB")


class Addresses(NamedTuple):
    """What leaves a core has one address per front end, which all cores share."""

    directory: str  # they are in, and other files that processes share
    from_core: tuple[str, ...]  # each bound by its front end

    @classmethod
    def of(cls, directory: str, num_front_ends: int) -> Addresses:
        """Those of an engine whose files are in `directory`."""
        inboxes = (f"ipc://{directory}/from-core-{index}" for index in range(num_front_ends))
        return cls(directory, tuple(inboxes))


class CoreAddress(NamedTuple):
    """One life of a core. A core that is started again has other files, so that nothing meant for
    the life before reaches it."""

    directory: str
    number: int = 0  # among the cores of the engine
    life: int = 0  # how often it has been started before

    @property
    def to_core(self) -> str:
        """Bound by the core."""
        return f"ipc://{self.directory}/to-core-{self.number}-{self.life}"

    @property
    def heartbeat(self) -> str:
        """The file of its signs of life."""
        return f"{self.directory}/heartbeat-{self.number}-{self.life}"

    def next_life(self) -> CoreAddress:
        return self._replace(life=self.life + 1)
