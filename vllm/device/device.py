"""One device: its memory, and transfers to and from it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class MemoryInfo:
    total_bytes: int
    free_bytes: int  # what this process may still take, limits of its container considered
    reserved_bytes: int  # what this process holds already


class HostCopy(Protocol):
    """A device-to-host copy under way."""

    def wait(self) -> np.ndarray: ...


class Device(ABC):
    """One device of a platform: memory and transfers, nothing else."""

    torch_device: torch.device

    @abstractmethod
    def memory(self) -> MemoryInfo: ...

    def zeros(self, num_bytes: int, dtype: torch.dtype) -> Tensor:
        """Zeroed memory, in one dimension."""
        return torch.zeros(num_bytes // dtype.itemsize, dtype=dtype, device=self.torch_device)

    def needing(self, what: str) -> AbstractContextManager[None]:
        """Raises ConfigError where the body runs out of memory, if the device can tell that."""
        return nullcontext()

    @abstractmethod
    def upload(self, array: np.ndarray) -> Tensor:
        """Copy to the device, asynchronously where possible; `array` is not written afterwards."""

    def put(self, out: Tensor, index: np.ndarray, rows: np.ndarray) -> None:
        """out[index] = rows, along dimension 0. Where an index repeats, so does its row."""
        out.index_copy_(0, self.upload(index.astype(np.int64)), self.upload(rows))

    @abstractmethod
    def download(self, tensor: Tensor) -> HostCopy:
        """Start copying to the host; `.wait()` gives the array."""

    def step_boundary(self) -> None:
        """End of a unit of device work, for devices that accumulate one."""

    @abstractmethod
    def synchronize(self) -> None: ...

    @abstractmethod
    def peak_bytes(self, run: Callable[[], object]) -> int:
        """Most memory that `run` takes at any time, beyond what is taken before."""
