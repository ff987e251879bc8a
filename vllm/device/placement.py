"""Where the blocks of the scheduler lie in a device's cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from vllm.device.attention import GroupTables
from vllm.device.device import Device
from vllm.messages.step import Int32Array


@dataclass(frozen=True, slots=True)
class PlacedCache:
    """What moving a block changes."""

    tables: Sequence[GroupTables]  # by KV group
    tensors: Sequence[Tensor]  # each piece of memory once
    device: Device


class Placement:
    """Every block in the place of its number, for good; a subclass may move blocks.

    The scheduler's block ids are names. Block tables on the worker hold places.
    """

    def bind(self, cache: PlacedCache) -> None:
        """Called once, before anything is placed."""

    def place(self, block_ids: Int32Array) -> Int32Array:
        """Where these blocks lie now."""
        return block_ids

    def release(self, slot: int) -> None:
        """The request in this slot has left."""

    def tidy(self) -> None:
        """Called when tables have changed, before the launches that read them."""

    def rehearse(self) -> None:
        """Do once whatever `tidy` can ask of the device; for warm-up."""
