from __future__ import annotations

import msgspec
import pytest

from vllm.messages.engine import EngineStats
from vllm.metrics.live import MAX_SAMPLES, LiveStats, Sample
from vllm.metrics.stats import IterationStats


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def live(clock: Clock) -> LiveStats:
    return LiveStats([11], clock)


def test_counters_become_counts_of_a_second(live: LiveStats, clock: Clock) -> None:
    live.record(EngineStats(num_generation_tokens=5, num_steps=1), IterationStats())
    live.record(EngineStats(num_generation_tokens=9, num_steps=2), IterationStats())
    clock.now_s += 1
    live.record(EngineStats(num_generation_tokens=16, num_steps=3), IterationStats())
    clock.now_s += 1
    samples = live.view().samples
    assert [(s.time, s.num_generation_tokens, s.num_steps) for s in samples] == [
        (1000, 9, 2),
        (1001, 7, 1),
    ]


def test_a_sample_has_the_highest_of_a_gauge(live: LiveStats, clock: Clock) -> None:
    for running, usage in ((1, 0.1), (7, 0.5), (0, 0.0)):
        stats = EngineStats(num_running=running, num_blocks=11, kv_usage=usage)
        live.record(stats, IterationStats())
    clock.now_s += 1
    view = live.view()
    assert (view.num_running, view.num_used_blocks) == (0, 0)
    assert (view.samples[0].num_running, view.samples[0].num_used_blocks) == (7, 5)


def test_what_lasts_into_a_second_counts_in_it(live: LiveStats, clock: Clock) -> None:
    live.record(EngineStats(num_running=4), IterationStats())
    clock.now_s += 3
    assert [s.num_running for s in live.view().samples] == [4, 4, 4]


def test_percentiles_are_near_the_exact_ones(live: LiveStats, clock: Clock) -> None:
    gaps = [i / 1000 for i in range(1, 101)]
    live.record(EngineStats(), IterationStats(inter_token_s=gaps))
    clock.now_s += 1
    summary = live.view().summary
    assert summary.inter_token is not None
    assert summary.inter_token.p50 == pytest.approx(0.050, rel=0.05)
    assert summary.inter_token.p95 == pytest.approx(0.095, rel=0.05)
    assert summary.time_to_first_token is None


def test_the_summary_is_of_all_seconds_together(live: LiveStats, clock: Clock) -> None:
    for value in (0.01, 0.01, 0.01, 1.0):
        live.record(EngineStats(), IterationStats(time_to_first_token_s=[value]))
        clock.now_s += 1
    summary = live.view().summary
    assert summary.time_to_first_token is not None
    assert summary.time_to_first_token.p50 == pytest.approx(0.01, rel=0.05)
    assert summary.time_to_first_token.p95 == pytest.approx(1.0, rel=0.05)


@pytest.mark.parametrize("seconds", [0.0, 1e-9, 1e9, float("inf")])
def test_absurd_durations_are_counted_at_the_ends(
    live: LiveStats, clock: Clock, seconds: float
) -> None:
    live.record(EngineStats(), IterationStats(inter_token_s=[seconds]))
    clock.now_s += 1
    assert live.view().samples[0].inter_token is not None


def test_the_hit_rate_is_of_what_was_looked_up(live: LiveStats, clock: Clock) -> None:
    assert live.view().summary.prefix_hit_rate is None
    live.record(EngineStats(prefix_queries=200, prefix_hits=50), IterationStats())
    clock.now_s += 1
    assert live.view().summary.prefix_hit_rate == 0.25


def test_steps_are_timed_once_each(live: LiveStats, clock: Clock) -> None:
    live.record(EngineStats(num_steps=1, step_s=0.02), IterationStats())
    live.record(EngineStats(num_steps=1, step_s=0.02), IterationStats())  # an abort, no step
    clock.now_s += 1
    sample = live.view().samples[0]
    assert sample.num_steps == 1
    assert sample.step is not None and sample.step.p50 == pytest.approx(0.02, rel=0.05)


def test_samples_are_bounded_and_without_gaps(live: LiveStats, clock: Clock) -> None:
    for _ in range(3):
        live.record(EngineStats(), IterationStats())
        clock.now_s += 10 * MAX_SAMPLES
    times = [sample.time for sample in live.view().samples]
    assert len(times) == MAX_SAMPLES
    assert times == list(range(times[0], times[0] + MAX_SAMPLES))
    assert times[-1] == int(clock.now_s) - 1


def test_only_later_samples_are_given_on_request(live: LiveStats, clock: Clock) -> None:
    clock.now_s += 5
    assert [sample.time for sample in live.view(after=1002).samples] == [1003, 1004]


def test_a_clock_that_is_set_back_does_no_harm(live: LiveStats, clock: Clock) -> None:
    clock.now_s -= 500
    live.record(EngineStats(num_generation_tokens=3), IterationStats())
    assert live.view().samples == []
    clock.now_s += 501
    assert [sample.num_generation_tokens for sample in live.view().samples] == [3]


def test_a_sample_is_a_row_in_the_order_of_the_fields(live: LiveStats, clock: Clock) -> None:
    clock.now_s += 1
    view = live.view()
    row = msgspec.json.decode(msgspec.json.encode(view))["samples"][0]
    assert view.fields == Sample.__struct_fields__
    assert row[view.fields.index("time")] == 1000


def test_engines_are_shown_together(clock: Clock) -> None:
    live = LiveStats([11, 31], clock)
    assert live.view().num_blocks == 40
    one = EngineStats(num_running=3, kv_usage=0.5, num_blocks=11, num_cached_blocks=4, num_steps=1)
    other = EngineStats(num_running=2, kv_usage=0.1, num_blocks=31, num_waiting=1, num_steps=1)
    one.step_s, other.step_s = 0.02, 0.2
    one.num_generation_tokens, other.num_generation_tokens = 5, 7
    live.record(one, IterationStats(), 0)
    live.record(other, IterationStats(), 1)
    view = live.view()
    assert (view.num_running, view.num_waiting, view.num_blocks) == (5, 1, 40)
    assert (view.num_used_blocks, view.num_cached_blocks) == (8, 4)
    clock.now_s += 1
    (sample,) = live.view().samples
    assert (sample.num_running, sample.num_used_blocks) == (5, 8)
    assert (sample.num_generation_tokens, sample.num_steps) == (12, 2)
    assert sample.step is not None
    assert sample.step.p50 == pytest.approx(0.02, rel=0.05)
    assert sample.step.p95 == pytest.approx(0.2, rel=0.05)


def test_no_second_counts_less_than_nothing_when_a_core_is_started_anew(
    live: LiveStats, clock: Clock
) -> None:
    live.record(EngineStats(num_generation_tokens=50, num_steps=5), IterationStats())
    clock.now_s += 1
    live.record(EngineStats(), IterationStats())
    live.record(EngineStats(num_generation_tokens=3, num_steps=1), IterationStats())
    clock.now_s += 1
    counts = [(s.num_generation_tokens, s.num_steps) for s in live.view().samples]
    assert counts == [(50, 5), (3, 1)]
