"""Figures of benchmarks/stage_timeline.py, of a timeline made by hand."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.stage_timeline import LOADS, figures_of

Event = dict[str, Any]
CORE, FIRST, LAST = 1, 2, 3  # processes


def track(pid: int, name: str) -> Event:
    return {"ph": "M", "name": "thread_name", "pid": pid, "tid": 1, "args": {"name": name}}


def span(pid: int, name: str, begin: float, end: float) -> Event:
    place = {"pid": pid, "tid": 1}
    return {"ph": "X", "name": name, "ts": begin, "dur": end - begin, "args": {}, **place}


def running(moment: float, number: int) -> Event:
    return {
        "ph": "C",
        "name": "requests",
        "ts": moment,
        "pid": CORE,
        "args": {"running": number, "waiting": 0},
    }


def flight(step: int, begin: float, end: float) -> list[Event]:
    shared = {"cat": "step in flight", "name": "step in flight", "id": step, "pid": CORE}
    return [{"ph": "b", "ts": begin, **shared}, {"ph": "e", "ts": end, **shared}]


def timeline() -> list[Event]:
    """Steps that begin every 50: of 40 on the first stage, of 50 less 15 on the last."""
    events = [track(CORE, "engine core"), track(FIRST, "rank 0"), track(LAST, "rank 1")]
    events += [running(0, 2), running(100, 4), running(250, 3), running(300, 4), running(500, 1)]
    for step in range(12):
        begin = 50.0 * step
        events += flight(step, begin, begin + 75)
        events.append(span(FIRST, "step", begin, begin + 40))
        events.append(span(LAST, "step", begin, begin + 50))
        events.append(span(LAST, "receive", begin + 5, begin + 20))
    return events


def test_a_stage_is_busy_while_it_does_not_receive() -> None:
    found = figures_of(timeline(), num_stages=2, num_running=4)
    assert found.seconds == 400e-6  # from 100 to 500: a request that ends is replaced at 300
    first, last = found.stages
    assert first.busy == pytest.approx(0.8)
    assert last.busy == pytest.approx((5 + 30) / 50)
    assert (first.median_ms, last.median_ms) == pytest.approx((0.04, 0.035))
    assert found.in_flight == pytest.approx(25 / 50)
    assert found.together == pytest.approx((5 + 20) / 50)


def test_a_load_that_never_ran_at_a_time_has_no_figures() -> None:
    with pytest.raises(ValueError, match="5 requests never ran"):
        figures_of(timeline(), num_stages=2, num_running=5)


def test_loads_have_more_requests_than_run_at_a_time_or_as_many() -> None:
    assert [len(make()) for make in LOADS.values()] == [32, 64]
    assert all(prompt + output <= 512 for make in LOADS.values() for prompt, output in make())
