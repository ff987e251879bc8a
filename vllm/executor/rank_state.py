"""What a rank does, as the executor knows it: its own words of a moment ago."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

from vllm.device.launch import ShapeKey


class Activity(enum.IntEnum):
    STARTING = 0  # importing, until the rank has said with which settings it runs
    JOINING = 1
    LOADING = 2
    MEASURING = 3
    WARMING_UP = 4
    IDLE = 5
    STEP = 6
    COMPILING = 7  # a step one of whose launches has a shape that was not prepared
    CALL = 8


_WORDS: Final = {
    Activity.STARTING: "starting",
    Activity.JOINING: "joining the other ranks",
    Activity.LOADING: "loading the model",
    Activity.MEASURING: "measuring memory",
    Activity.WARMING_UP: "warming up",
    Activity.IDLE: "idle",
    Activity.STEP: "in step {}",
    Activity.COMPILING: "compiling for step {}",
    Activity.CALL: "in a call",
}
# Takes as long as compilers take.
_COMPILES: Final = frozenset({Activity.MEASURING, Activity.WARMING_UP, Activity.COMPILING})


@dataclass(frozen=True, slots=True)
class RankState:
    """Of one rank. Times are of time.monotonic().

    Each part was true when it was written; two parts may be of different moments.
    """

    rank: int
    pid: int  # 0: not known yet
    beat_s: float  # last sign of life; 0: none yet
    activity: Activity
    step: int  # of STEP and COMPILING
    since_s: float  # of the activity
    shape: ShapeKey | None  # last launch of the activity
    # The driver waits for a step's values, which a thread of its own may do beside the activity.
    answering: int | None  # that step
    answering_since_s: float
    is_answer_compiled: bool  # while that step was begun, a launch was compiled
    collective: str  # what it waits for in one; "": it does not, or cannot say
    collective_since_s: float

    @property
    def name(self) -> str:
        return f"rank {self.rank} (process {self.pid})" if self.pid else f"rank {self.rank}"

    @property
    def is_compiling(self) -> bool:
        """It has work that takes as long as compilers take, and does not wait for other ranks."""
        compiles = self.activity in _COMPILES or (
            self.answering is not None and self.is_answer_compiled
        )
        return compiles and not self.collective

    def is_stuck(self, now_s: float) -> bool:
        """It has waited for other ranks for longer than they are apart if all is well."""
        return bool(self.collective) and now_s - self.collective_since_s > 1.0

    def doing(self) -> str:
        """The activity alone."""
        words = _WORDS[self.activity].format(self.step)
        return words if self.shape is None else f"{words} ({self.shape})"

    def described(self, now_s: float) -> str:
        """The activity, and what it waits for, each with its duration."""
        parts = [f"{self.doing()} for {_seconds(now_s, self.since_s)}"]
        if self.answering is not None:
            waited = _seconds(now_s, self.answering_since_s)
            parts.append(f"waiting for the values of step {self.answering} for {waited}")
        if self.collective:
            waited = _seconds(now_s, self.collective_since_s)
            parts.append(f"waiting in a collective ({self.collective}) for {waited}")
        return ", ".join(parts)


def _seconds(now_s: float, since_s: float) -> str:
    return f"{max(0.0, now_s - since_s):.0f} s"
