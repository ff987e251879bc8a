"""Time as a process that waits experiences it."""

from __future__ import annotations

import time
from typing import Final

TICK_S: Final = 0.5  # between looks while one waits
# More between two looks was not spent waiting: this process was stopped, or did other work.
MOST_S: Final = 1.5


class Stopwatch:
    """Says how much time has passed between looks."""

    def __init__(self) -> None:
        self._looked_s = time.monotonic()

    @property
    def is_due(self) -> bool:
        return time.monotonic() - self._looked_s >= TICK_S

    def lapse_s(self) -> float:
        """Since the last look, or since the start."""
        now_s = time.monotonic()
        lapse_s, self._looked_s = now_s - self._looked_s, now_s
        return min(lapse_s, MOST_S)
