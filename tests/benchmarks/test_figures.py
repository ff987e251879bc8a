from __future__ import annotations

import numpy as np
import pytest

from vllm.benchmarks.figures import (
    figures,
    good_requests,
    parse_goals,
    parse_metrics,
    parse_percentiles,
    peak_requests,
    peak_tokens_per_s,
)
from vllm.benchmarks.load import Answer
from vllm.errors import ConfigError


def answer(start_s: float, first_s: float, *between_s: float, **values: object) -> Answer:
    found = Answer(start_s, first_s, list(between_s), first_s + sum(between_s), 10)
    found.num_output_tokens = 1 + len(between_s)
    for name, value in values.items():
        setattr(found, name, value)
    return found


ANSWERS = [
    answer(0.0, 0.1, 0.02, 0.04),
    answer(0.5, 0.2, 0.01),
    answer(1.0, 0.05),
    answer(1.0, 0.0, error="refused"),
]


def test_figures_are_those_of_numpy_over_the_answers_without_errors() -> None:
    found = figures(ANSWERS, 2.0, ["ttft", "tpot", "itl", "e2el"], [50, 99.9], {})
    ttft = np.array([100.0, 200.0, 50.0])
    assert found["completed"] == 3 and found["failed"] == 1
    assert found["total_input_tokens"] == 30 and found["total_output_tokens"] == 6
    assert found["request_throughput"] == 1.5 and found["output_throughput"] == 3.0
    assert found["total_token_throughput"] == 18.0
    assert found["mean_ttft_ms"] == pytest.approx(ttft.mean())
    assert found["median_ttft_ms"] == pytest.approx(100)
    assert found["std_ttft_ms"] == pytest.approx(ttft.std())
    assert found["p99.9_ttft_ms"] == pytest.approx(np.percentile(ttft, 99.9))
    assert found["mean_tpot_ms"] == pytest.approx((30 + 10) / 2)  # one token has none
    assert found["mean_itl_ms"] == pytest.approx((20 + 40 + 10) / 3)
    assert found["p50_e2el_ms"] == pytest.approx(160)
    assert found["request_goodput"] is None


def test_only_the_metrics_asked_for_are_there() -> None:
    found = figures(ANSWERS, 2.0, ["ttft"], [99], {})
    assert "p99_ttft_ms" in found and not any("itl" in key for key in found)


def test_without_an_answer_figures_are_zero() -> None:
    found = figures(ANSWERS[3:], 2.0, ["ttft", "itl"], [99], {"ttft": 1.0})
    assert found["mean_ttft_ms"] == 0 and found["request_goodput"] == 0
    assert found["max_output_tokens_per_s"] == 0


def test_goodput_counts_requests_that_meet_every_goal() -> None:
    done = ANSWERS[:3]
    assert good_requests(done, {"ttft": 100.0}) == 2
    assert good_requests(done, {"ttft": 100.0, "tpot": 20.0}) == 1
    assert good_requests(done, {"e2el": 161.0}) == 2
    assert figures(ANSWERS, 2.0, [], [], {"ttft": 100.0})["request_goodput"] == 1.0


def test_peaks_are_over_a_second_and_a_moment() -> None:
    assert peak_tokens_per_s([answer(0.0, 0.5, 0.1, 0.1), answer(1.0, 0.65)]) == 3
    assert peak_tokens_per_s([answer(0.0, 0.5, 0.1, num_output_tokens=8)]) == 8
    assert peak_requests([answer(0.0, 1.0), answer(0.5, 0.1), answer(0.7, 0.1)]) == 2


@pytest.mark.parametrize("text", ["a", "101", "-1", ""])
def test_a_wrong_percentile_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--metric-percentiles"):
        parse_percentiles(text)


@pytest.mark.parametrize("word", ["ttft", "ttft:", "ttft:0", "itl:5", "ttft:x", "ttft:nan"])
def test_a_wrong_goal_is_refused(word: str) -> None:
    with pytest.raises(ConfigError, match=f"--goodput {word}"):
        parse_goals([word])


def test_goals_and_metrics_are_read() -> None:
    assert parse_goals(["ttft:100", "e2el:2.5"]) == {"ttft": 100.0, "e2el": 2.5}
    assert parse_metrics("ttft, itl") == ["ttft", "itl"]
    with pytest.raises(ConfigError, match="speed is none of"):
        parse_metrics("speed")
