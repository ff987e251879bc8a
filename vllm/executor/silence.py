"""Whether a rank's process hangs: it was stopped, or nothing runs in it any more."""

from __future__ import annotations

from typing import Final

from vllm.executor.rank_state import RankState
from vllm.utils.processor_time import process_state, processor_time_s

STOPPED_S: Final = 5.0  # without a beat, of a process that a signal has stopped
# Of any other one. Native code may hold the interpreter's lock for long, and a machine be busy.
SILENT_S: Final = 60.0


class Silence:
    """How long one process has given no sign of life.

    Only time in which somebody looked is counted: an engine that was stopped itself, or had nothing
    to do, finds old signs when it goes on.
    """

    def __init__(self) -> None:
        self._beat_s = 0.0  # the sign that was seen last
        self._computed_s = 0.0
        self._silent_s = 0.0  # since that sign
        self._still_s = 0.0  # the part of it without computing

    def look(self, state: RankState, pid: int, lapse_s: float) -> str:
        """What is wrong, `lapse_s` after the look before; "" if nothing is."""
        if state.beat_s != self._beat_s:
            self._beat_s = state.beat_s
            self._silent_s = self._still_s = 0.0
            return ""
        self._silent_s += lapse_s
        self._still_s += lapse_s
        if self._silent_s <= STOPPED_S:
            return ""
        if process_state(pid) == "T":
            return f"was stopped by a signal: no sign of life for {self._silent_s:.0f} s"
        computed_s = processor_time_s(pid)
        if computed_s != self._computed_s:
            self._computed_s, self._still_s = computed_s, 0.0
        # Before its first beat a process imports the program that it is to run.
        if state.beat_s and self._still_s > SILENT_S:
            return f"hangs: no sign of life for {self._silent_s:.0f} s, in which it did not compute"
        return ""
