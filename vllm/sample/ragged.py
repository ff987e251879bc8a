"""Per-slot lists of different lengths, as padded device tensors that grow when they must.

Widths are powers of two: devices that compile per shape meet few of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from vllm.messages.step import Int32Array

if TYPE_CHECKING:
    from vllm.device.device import Device

ANY_TOKEN = -1  # in a word: matches everything
NO_TOKEN = -2  # in a word: matches nothing


def power_of_two(n: int) -> int:
    """The least one that is at least n."""
    return 1 << max(0, n - 1).bit_length()


class SlotLists:
    """One non-empty list of numbers per slot, padded on the right with its own first number.

    So padding of a list of token ids names no other token than the list does.
    """

    def __init__(self, num_slots: int, device: Device, dtype: torch.dtype) -> None:
        self._device = device
        self._data = torch.zeros((num_slots, 1), dtype=dtype, device=device.torch_device)
        self._lengths_np = np.ones(num_slots, np.int32)

    def put(self, slot: int, items: Sequence[int] | Sequence[float]) -> None:
        assert items, slot
        width = self._data.shape[1]
        if len(items) > width:
            wider = self._data[:, :1].repeat(1, power_of_two(len(items)))
            wider[:, :width] = self._data
            self._data = wider
        self._lengths_np[slot] = len(items)
        row = torch.full((1, self._data.shape[1]), items[0], dtype=self._data.dtype)
        row[0, : len(items)] = torch.tensor(items, dtype=self._data.dtype)
        self._device.put(self._data, np.array([slot]), row.numpy())

    def get(self, slots_np: Int32Array, slots: Tensor) -> Tensor:
        """[P, W], W at least the longest list among these slots."""
        width = power_of_two(int(self._lengths_np[slots_np].max(initial=1)))
        return self._data[:, :width].index_select(0, slots)


class SlotWords:
    """A list of words per slot. A word is a token sequence, aligned to the right."""

    def __init__(self, num_slots: int, device: Device) -> None:
        self._device = device
        self._data = torch.full(
            (num_slots, 1, 1), NO_TOKEN, dtype=torch.int32, device=device.torch_device
        )
        self._num_words_np = np.zeros(num_slots, np.int32)

    def put(self, slot: int, words: Sequence[Sequence[int]]) -> None:
        num_slots, num_words, length = self._data.shape
        longest = max(map(len, words))
        if len(words) > num_words or longest > length:
            shape = (
                num_slots,
                max(num_words, power_of_two(len(words))),
                max(length, power_of_two(longest)),
            )
            larger = self._data.new_full(shape, NO_TOKEN)
            larger[:, :num_words, :-length] = ANY_TOKEN
            larger[:, :num_words, -length:] = self._data
            self._data = larger
        rows = torch.full((1, *self._data.shape[1:]), NO_TOKEN, dtype=torch.int32)
        rows[0, : len(words)] = ANY_TOKEN
        for row, word in zip(rows[0], words, strict=False):
            row[-len(word) :] = torch.tensor(word, dtype=torch.int32)
        self._device.put(self._data, np.array([slot]), rows.numpy())
        self._num_words_np[slot] = len(words)

    def get(self, slots_np: Int32Array, slots: Tensor) -> Tensor:
        """[P, W, M] int32. Before the first token of a word comes ANY_TOKEN.

        Rows with fewer than W words end in words that hold a NO_TOKEN and so match nothing.
        """
        num_words = power_of_two(int(self._num_words_np[slots_np].max(initial=1)))
        return self._data[:, :num_words].index_select(0, slots)
