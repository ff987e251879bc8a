"""Host memory as a device."""

from __future__ import annotations

import mmap
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vllm.device.device import Device, MemoryInfo
from vllm.errors import ConfigError
from vllm.platforms.cpu.peak import PeakTensorBytes

_CGROUP = Path("/sys/fs/cgroup")
_PROC = Path("/proc")


class FinishedCopy:
    """A copy that was complete when it was asked for."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array

    def wait(self) -> np.ndarray:
        return self._array


class CpuDevice(Device):
    """Uploads share memory with the array where they can; puts and downloads never share."""

    torch_device = torch.device("cpu")

    def memory(self) -> MemoryInfo:
        return read_memory(_PROC, _CGROUP)

    def zeros(self, num_bytes: int, dtype: torch.dtype) -> Tensor:
        # Mapped pages are zero without being written: a cache that is larger than what requests
        # ever use costs nothing, nor does start-up wait for it. Large ones where the system has
        # them: a prompt touches many of its layers' pages for the first time, and attention reads
        # blocks from all over the cache. Private, because Linux has few large ones to share.
        try:
            memory = mmap.mmap(-1, max(1, num_bytes), flags=mmap.MAP_PRIVATE | mmap.MAP_ANON)
        except OSError:
            raise ConfigError(
                f"--kv-cache-memory-bytes {num_bytes}: this machine does not give that much memory "
                "to a process. Use less, or lower --gpu-memory-utilization."
            ) from None
        if sys.platform == "linux":
            with suppress(OSError):
                memory.madvise(mmap.MADV_HUGEPAGE)
        return torch.frombuffer(memory, dtype=torch.uint8, count=num_bytes).view(dtype)

    def upload(self, array: np.ndarray) -> Tensor:
        """A view of `array` (a copy if it is read-only)."""
        return torch.from_numpy(array if array.flags.writeable else array.copy())

    def put(self, out: Tensor, index: np.ndarray, rows: np.ndarray) -> None:
        out.numpy()[index] = rows  # a tenth of the time of index_copy_ for a few rows

    def download(self, tensor: Tensor) -> FinishedCopy:
        # A copy, because the next step may overwrite the tensor before anybody reads the result.
        return FinishedCopy(tensor.numpy().copy())

    def synchronize(self) -> None:
        """Everything has happened already."""

    def peak_bytes(self, run: Callable[[], object]) -> int:
        with PeakTensorBytes() as mode:
            run()
        return mode.peak


def read_memory(proc: Path, cgroup: Path) -> MemoryInfo:
    """Memory of the machine, bounded by every control group (v1 or v2) this process is in."""
    fields = dict(re.findall(r"(\w+):\s+(\d+)", (proc / "meminfo").read_text()))
    total = int(fields["MemTotal"]) * 1024
    free = int(fields["MemAvailable"]) * 1024
    for limit, used in _cgroup_limits(proc, cgroup):
        total = min(total, limit)
        free = min(free, max(0, limit - used))
    resident = re.search(r"VmRSS:\s+(\d+)", (proc / "self/status").read_text())
    reserved = int(resident.group(1)) * 1024 if resident else 0
    return MemoryInfo(total_bytes=total, free_bytes=free, reserved_bytes=reserved)


def _cgroup_limits(proc: Path, cgroup: Path) -> list[tuple[int, int]]:
    """(limit, used) in bytes of the groups from this process's own up to the root."""
    found = []
    for line in (proc / "self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, names = cgroup, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            root = cgroup / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        # In a container the path may be the host's, which is not mounted; the root is ours then.
        own = root / path.lstrip("/")
        for directory in (own, *own.parents):
            limits = _read_group(directory, *names)
            if limits is not None:
                found.append(limits)
            if directory == root:
                break
    return found


def _read_group(directory: Path, limit: str, used: str, cache: str) -> tuple[int, int] | None:
    """(limit, used) of one group, page cache that can be dropped not counted; None: no limit."""
    try:
        limit_text = (directory / limit).read_text().strip()
        used_bytes = int((directory / used).read_text())
        stat = (directory / "memory.stat").read_text()
    except OSError:
        return None
    if limit_text == "max":
        return None
    droppable = re.search(rf"^{cache} (\d+)", stat, re.MULTILINE)
    return int(limit_text), used_bytes - (int(droppable.group(1)) if droppable else 0)
