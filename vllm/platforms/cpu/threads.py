"""Which cores a worker computes on, and with how many threads."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vllm.errors import ConfigError

_CPUS = Path("/sys/devices/system/cpu")
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class ThreadPlan:
    """`cpus` to pin the process to (empty: leave it alone) and the threads of one op."""

    cpus: tuple[int, ...]
    num_threads: int


def plan_threads(bind: str, rank: int, world_size: int, wanted: int) -> ThreadPlan:
    """Threads of one rank for VLLM_CPU_OMP_THREADS_BIND = `bind`. Raises ConfigError.

    `auto` shares the cores of this process evenly, one thread per physical core, at most `wanted`
    threads and never more than the container's CPU quota, and pins only when ranks must be kept
    apart. `nobind` never pins. Otherwise a list of CPUs per rank, as in "0-3|4-7".
    """
    if bind == "nobind":
        return ThreadPlan((), max(1, wanted))
    if bind != "auto":
        lists = bind.split("|")
        if len(lists) != world_size:
            raise ConfigError(
                f"VLLM_CPU_OMP_THREADS_BIND={bind!r} lists CPUs for {len(lists)} ranks, but there "
                f"are {world_size}; give one list per rank, separated by '|'"
            )
        cpus = parse_cpu_list(lists[rank])
        absent = sorted(set(cpus) - os.sched_getaffinity(0))
        if absent:
            raise ConfigError(
                f"VLLM_CPU_OMP_THREADS_BIND={bind!r} names CPUs {absent} that this process may not "
                f"use; allowed are {sorted(os.sched_getaffinity(0))}"
            )
        return ThreadPlan(cpus, len(cpus))
    cores = physical_cores(sorted(os.sched_getaffinity(0)), _CPUS)
    budget = num_usable_cores()
    share = max(1, budget // world_size)
    if world_size == 1 or len(cores) < world_size:
        return ThreadPlan((), max(1, min(share, wanted)))
    mine = tuple(cores[rank * share : (rank + 1) * share])
    return ThreadPlan(mine, max(1, min(len(mine), wanted)))


def num_usable_cores() -> int:
    """Physical cores that this process may use at a time."""
    cores = physical_cores(sorted(os.sched_getaffinity(0)), _CPUS)
    return min(len(cores), cpu_quota(_CGROUP))


def parse_cpu_list(text: str) -> tuple[int, ...]:
    """The kernel's list format: "0-2,5" is (0, 1, 2, 5)."""
    cpus: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ConfigError(
                f"VLLM_CPU_OMP_THREADS_BIND: {part.strip()!r} is no CPU or range; use 'auto', "
                f"'nobind' or lists such as '0-3|4-7'"
            )
        cpus.extend(range(int(first), int(last or first) + 1))
    return tuple(dict.fromkeys(cpus))


def physical_cores(cpus: Sequence[int], root: Path) -> list[int]:
    """The first of `cpus` on every physical core: threads of one core share its vector units."""
    seen: set[str] = set()
    cores = []
    for cpu in cpus:
        try:
            siblings = (root / f"cpu{cpu}/topology/thread_siblings_list").read_text()
        except OSError:
            siblings = str(cpu)
        if siblings not in seen:
            seen.add(siblings)
            cores.append(cpu)
    return cores


def cpu_quota(cgroup: Path) -> int:
    """Whole CPUs the container may use at a time (v1 or v2); a large number without a limit."""
    unlimited = 1 << 20
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (cgroup / "cpu/cpu.cfs_quota_us").read_text().strip()
            period = (cgroup / "cpu/cpu.cfs_period_us").read_text().strip()
        except OSError:
            return unlimited
    if not quota.isdecimal():  # "max" in version 2, "-1" in version 1
        return unlimited
    return max(1, int(quota) // int(period))
