"""How much memory of the device is used."""

from __future__ import annotations

from habana_frameworks.torch.hpu.device import Device, index_of
from hpu_emulator import _C

_OTHERS = ("Graphs", "Workspace")


def memory_stats(device: Device = None) -> dict[str, int]:
    """Sizes in bytes."""
    raw: dict[str, int] = _C.memory_stats(index_of(device))
    stats = {name: value for name, value in raw.items() if name not in _OTHERS}
    # The pool is one allocation that the driver makes when the device is taken.
    stats["TotalSystemAllocs"] = 1 if stats["NumAllocs"] else 0
    stats["TotalSystemFrees"] = 0
    stats["TotalActiveAllocs"] = stats["TotalSystemAllocs"]
    return stats


def memory_allocated(device: Device = None) -> int:
    return memory_stats(device)["InUse"]


def max_memory_allocated(device: Device = None) -> int:
    return memory_stats(device)["MaxInUse"]


def memory_reserved(device: Device = None) -> int:
    """All of it: the pool is reserved when the device is taken."""
    return memory_stats(device)["Limit"]


def max_memory_reserved(device: Device = None) -> int:
    return memory_stats(device)["Limit"]


def mem_get_info(device: Device = None) -> tuple[int, int]:
    """Free and total bytes."""
    stats = memory_stats(device)
    return stats["Limit"] - stats["InUse"], stats["Limit"]


def reset_peak_memory_stats(device: Device = None) -> None:
    _C.reset_peak_memory(index_of(device))


def reset_accumulated_memory_stats(device: Device = None) -> None:
    _C.reset_accumulated_memory(index_of(device))


def memory_usage(device: Device = None) -> float:
    """Share of the memory in use, in percent."""
    stats = memory_stats(device)
    return 100.0 * stats["InUse"] / stats["Limit"]


def memory_summary(device: Device = None) -> str:
    stats = memory_stats(device)
    width = max(map(len, stats))
    return "\n".join(f"{name:<{width}} {value:>16,}" for name, value in stats.items())


def utilization(device: Device = None) -> int:
    raise RuntimeError("utilization() asks the driver through pyhlml, which is not emulated")
