"""Keeping the blocks in use at the low end of the cache, for attention that reads it from there."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from torch import Tensor

from vllm.device.placement import PlacedCache, Placement
from vllm.logger import init_logger
from vllm.messages.step import Int32Array
from vllm.platforms.hpu.attention.planning import DUMMY_BLOCK

logger = init_logger(__name__)

# Numbers of swaps that the device knows: what is less is filled up with swaps of the dummy block
# with itself.
SWAP_SIZES: Final = (8, 16, 32, 64, 128, 256, 512)


class ContiguousPlacement(Placement):
    """Swaps high blocks in use with low free ones when the holes between them become many.

    A free block keeps what it holds, at its new place. Everything is decided on the host; the
    device swaps in the order of steps, behind launches that still read the old places.
    """

    cache: PlacedCache

    def __init__(self, num_blocks: int, threshold: int | None, logs_swaps: bool = False) -> None:
        """`threshold`: holes that are tolerated; None: all."""
        self.num_blocks = num_blocks
        self.threshold = threshold
        self.logs_swaps = logs_swaps
        self.num_swaps = 0
        self._place = np.arange(num_blocks, dtype=np.int32)  # by the scheduler's id

    def bind(self, cache: PlacedCache) -> None:
        self.cache = cache

    def place(self, block_ids: Int32Array) -> Int32Array:
        places: Int32Array = self._place[block_ids]
        return places

    def release(self, slot: int) -> None:
        # What stays behind in a table would count as in use.
        for table in self.cache.tables:
            table.blocks_np[slot] = 0

    def highest(self, slots: Int32Array, columns: Int32Array) -> int:
        """Highest place in the first `columns` entries of these rows, windows left out."""
        width = int(columns.max(initial=0))
        is_read = np.arange(width) < columns[:, None]
        return max(
            (
                int(np.where(is_read, table.blocks_np[slots, :width], 0).max(initial=0))
                for table in self.cache.tables
                if table.window is None
            ),
            default=0,
        )

    def tidy(self) -> None:
        if self.threshold is None:
            return
        is_used = np.zeros(self.num_blocks, bool)
        for table in self.cache.tables:
            is_used[table.blocks_np.ravel()] = True
        is_used[DUMMY_BLOCK] = True
        pairs = choose_swaps(is_used, self.threshold)
        if len(pairs):
            self._swap(pairs)
            self.num_swaps += len(pairs)
            if self.logs_swaps:
                used = np.flatnonzero(is_used)
                logger.info(
                    "Defragmentation: %d blocks in use up to block %d, so %d holes; %d of them "
                    "filled from above, %d since the start",
                    len(used),
                    used[-1],
                    used[-1] + 1 - len(used),
                    len(pairs),
                    self.num_swaps,
                )

    def rehearse(self) -> None:
        if self.threshold is not None:
            for size in SWAP_SIZES:
                self._swap_on_device(np.zeros((size, 2), np.int32))

    def _swap(self, pairs: Int32Array) -> None:
        """pairs [S, 2]: places whose contents change places. No place occurs twice."""
        moved = np.arange(self.num_blocks, dtype=np.int32)
        moved[pairs[:, 0]], moved[pairs[:, 1]] = pairs[:, 1], pairs[:, 0]
        self._place = moved[self._place]
        for table in self.cache.tables:
            table.blocks_np[:] = moved[table.blocks_np]
        size = next(size for size in SWAP_SIZES if size >= len(pairs))
        padded = np.zeros((size, 2), np.int32)
        padded[: len(pairs)] = pairs
        self._swap_on_device(padded)

    def _swap_on_device(self, pairs: Int32Array) -> None:
        device = self.cache.device
        source = device.upload(pairs.T.astype(np.int64).reshape(-1))
        target = device.upload(pairs[:, ::-1].T.astype(np.int64).reshape(-1))
        for tensor in self.cache.tensors:
            copy_blocks(tensor, source, target, self.num_blocks)
        device.step_boundary()


def choose_swaps(is_used: np.ndarray, threshold: int) -> Int32Array:
    """[S, 2]: the highest places in use, each with a free one below. Place 0 must be in use."""
    used = np.flatnonzero(is_used)
    if used[-1] + 1 - threshold <= len(used):
        return np.empty((0, 2), np.int32)
    free = np.flatnonzero(~is_used)
    most = min(len(used), len(free), SWAP_SIZES[-1])
    high, low = used[::-1][:most], free[:most]
    pairs = np.stack((high, low), 1).astype(np.int32)
    return pairs[high > low]


def copy_blocks(cache: Tensor, source: Tensor, target: Tensor, num_blocks: int) -> None:
    """Contents of blocks source [S] to blocks target [S] of a layer's cache; see HpuAttention.

    Everything is read before anything is written, so that blocks may be in both.
    """
    entries = cache.shape[0]
    # Latent rows are one run of entries, keys and values are two.
    starts = [0] if cache.dim() == 2 else [0, entries // 2]
    size = entries // (len(starts) * num_blocks)
    offset = torch.arange(size, device=cache.device)
    for start in starts:
        read = (source.unsqueeze(1) * size + offset).flatten() + start
        written = (target.unsqueeze(1) * size + offset).flatten() + start
        cache.index_copy_(0, written, cache.index_select(0, read))
