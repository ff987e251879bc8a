"""One Gaudi: its memory, and transfers that keep shapes few and the host running."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from vllm.device.device import Device, MemoryInfo
from vllm.platforms.hpu import bridge
from vllm.platforms.hpu.memory import needing

# Rows of one write to a device tensor: all powers of two between are compiled at warm-up.
LEAST_PUT: Final = 8
MOST_PUT: Final = 4096


class StreamedCopy:
    """A copy to the host on a stream of its own, with the event that ends it."""

    def __init__(self, host: Tensor, event: Any) -> None:
        self._host = host
        self._event = event

    def wait(self) -> np.ndarray:
        self._event.synchronize()
        array: np.ndarray = self._host.numpy()
        return array


class HpuDevice(Device):
    torch_device = torch.device("hpu")

    def __init__(self, index: int) -> None:
        """Takes the device for this process. Raises ConfigError."""
        self._hpu = bridge.acquire(index)
        self._copies = self._hpu.Stream()
        self._mark_step: Callable[[], None] = bridge.module("core").mark_step
        self._is_lazy = bridge.is_lazy()

    def memory(self) -> MemoryInfo:
        free, total = self._hpu.mem_get_info()
        return MemoryInfo(total_bytes=total, free_bytes=free, reserved_bytes=total - free)

    def needing(self, what: str) -> AbstractContextManager[None]:
        return needing(what)

    def upload(self, array: np.ndarray) -> Tensor:
        host = torch.from_numpy(array if array.flags.writeable else array.copy())
        return host.to(self.torch_device, non_blocking=True)

    def put(self, out: Tensor, index: np.ndarray, rows: np.ndarray) -> None:
        """In pieces of a power of two rows, filled up with repetitions of their first."""
        for begin in range(0, len(index), MOST_PUT):
            where, what = index[begin : begin + MOST_PUT], rows[begin : begin + MOST_PUT]
            size = max(LEAST_PUT, 1 << (len(where) - 1).bit_length())
            padding = size - len(where)
            if padding:
                where = np.concatenate((where, np.repeat(where[:1], padding)))
                what = np.concatenate((what, np.repeat(what[:1], padding, axis=0)))
            super().put(out, where, what)
            self.step_boundary()

    def download(self, tensor: Tensor) -> StreamedCopy:
        self.step_boundary()
        self._copies.wait_stream(self._hpu.current_stream())
        with self._hpu.stream(self._copies):
            host = torch.empty(tensor.shape, dtype=tensor.dtype)
            host.copy_(tensor, non_blocking=True)
            event = self._hpu.Event()
            event.record(self._copies)
        return StreamedCopy(host, event)

    def step_boundary(self) -> None:
        if self._is_lazy:
            self._mark_step()

    def synchronize(self) -> None:
        self._hpu.synchronize()

    def peak_bytes(self, run: Callable[[], object]) -> int:
        self._hpu.synchronize()
        self._hpu.reset_peak_memory_stats()
        before = self._hpu.memory_allocated()
        run()
        self._hpu.synchronize()
        return max(0, int(self._hpu.max_memory_allocated() - before))
