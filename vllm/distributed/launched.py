"""What torchrun says of a process that it has started."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from vllm.envs import inherited
from vllm.errors import ConfigError

_NAMES: Final = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_FLAG: Final = "--distributed-executor-backend external_launcher"


@dataclass(frozen=True, slots=True)
class Launched:
    """One process of several that run the same program, node after node, as many on each."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    host: str  # where all processes meet
    port: int

    @property
    def node(self) -> int:
        return self.rank // self.local_world_size

    @property
    def num_nodes(self) -> int:
        return self.world_size // self.local_world_size

    @classmethod
    def read(cls) -> Launched:
        """Of this process, from its environment. Raises ConfigError.

        Without LOCAL_WORLD_SIZE all processes are taken to be on one machine.
        """
        missing = [name for name in _NAMES if not (inherited(name) or "").strip()]
        if missing:
            raise ConfigError(
                f"{_FLAG}: {', '.join(missing)} is not set, as torchrun sets it for every process. "
                "Start the program with torchrun --nproc-per-node=N program.py, where N is "
                "--tensor-parallel-size x --pipeline-parallel-size, or leave the flag out."
            )
        world_size = _number("WORLD_SIZE")
        has_local_size = (inherited("LOCAL_WORLD_SIZE") or "").strip()
        launched = cls(
            rank=_number("RANK"),
            world_size=world_size,
            local_rank=_number("LOCAL_RANK"),
            local_world_size=_number("LOCAL_WORLD_SIZE") if has_local_size else world_size,
            host=(inherited("MASTER_ADDR") or "").strip(),
            port=_number("MASTER_PORT"),
        )
        launched._check()
        return launched

    def _check(self) -> None:
        local = self.local_world_size
        if not local or self.world_size % local or self.rank % local != self.local_rank:
            raise ConfigError(
                f"{_FLAG}: RANK={self.rank} LOCAL_RANK={self.local_rank} WORLD_SIZE="
                f"{self.world_size} LOCAL_WORLD_SIZE={local}: processes must be numbered node "
                "after node, and every node must have as many. torchrun with the same "
                "--nproc-per-node on every node numbers them so."
            )
        if self.rank >= self.world_size:
            raise ConfigError(
                f"{_FLAG}: RANK={self.rank} is not below WORLD_SIZE={self.world_size}."
            )


def _number(name: str) -> int:
    text = (inherited(name) or "").strip()
    if not text.isdecimal():
        raise ConfigError(f"{_FLAG}: {name}={text!r} must be a whole number, 0 or more.")
    return int(text)
