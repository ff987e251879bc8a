"""Time as a process that waits experiences it."""

from __future__ import annotations

import time
from typing import Final

# More between two looks was not spent waiting: this process was stopped, or did other work.
_MOST_TICKS: Final = 3


class Stopwatch:
    """Says how much time has passed between looks, of which there is one every `tick_s`."""

    def __init__(self, tick_s: float) -> None:
        self.tick_s = tick_s
        self._looked_s = time.monotonic()

    @property
    def is_due(self) -> bool:
        return time.monotonic() - self._looked_s >= self.tick_s

    def lapse_s(self) -> float:
        """Since the last look, or since the start; begins the next lapse."""
        now_s = time.monotonic()
        lapse_s, self._looked_s = now_s - self._looked_s, now_s
        return min(lapse_s, _MOST_TICKS * self.tick_s)
