"""What a process has cost: processor time, to which other processes add nothing."""

from __future__ import annotations

import os
from typing import Final

_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
# Of the fields of /proc/PID/stat after the name: time spent computing, by itself and in the kernel.
_USER, _SYSTEM = 11, 12


def processor_time_s(pid: int) -> float:
    """Seconds that all its threads have computed, in steps of 1 / SC_CLK_TCK; 0 if it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[_USER]) + int(fields[_SYSTEM])) / _TICKS_PER_S


def process_state(pid: int) -> str:
    """The letter of its state, as of its main thread: T: stopped by a signal; "": it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0].decode()
    except OSError:
        return ""
