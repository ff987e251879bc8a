from __future__ import annotations

import time

from tests.limits import wait_until
from vllm.executor.stopwatch import Stopwatch


def test_a_long_time_between_looks_was_not_spent_waiting() -> None:
    """As after Ctrl-Z: the engine and its ranks go on, and the ranks' signs of life are old."""
    stopwatch = Stopwatch(tick_s=0.01)
    time.sleep(0.5)
    assert stopwatch.lapse_s() == 3 * 0.01
    assert 0 <= stopwatch.lapse_s() < 0.5


def test_looks_are_due_once_per_tick() -> None:
    stopwatch = Stopwatch(tick_s=0.02)
    for _ in range(3):
        wait_until(lambda: stopwatch.is_due, "the tick")
        assert stopwatch.lapse_s() >= 0.02
    assert not Stopwatch(tick_s=3600.0).is_due
