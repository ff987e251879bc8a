"""From what clients saw to figures, under the names that scripts for vLLM read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vllm.benchmarks.load import Answer
from vllm.errors import ConfigError

METRICS = ("ttft", "tpot", "itl", "e2el")
GOODPUT_METRICS = ("ttft", "tpot", "e2el")
WINDOW_S = 1.0


def values_ms(answers: Sequence[Answer]) -> dict[str, np.ndarray]:
    """Every measurement by metric, in milliseconds. An answer of one token has no tpot."""
    found = {
        "ttft": [answer.first_token_s for answer in answers],
        "tpot": [a.per_output_token_s for a in answers if a.num_output_tokens > 1],
        "itl": [gap for answer in answers for gap in answer.between_s],
        "e2el": [answer.total_s for answer in answers],
    }
    return {name: np.asarray(values, dtype=np.float64) * 1000 for name, values in found.items()}


def figures(
    answers: Sequence[Answer],
    duration_s: float,
    metrics: Sequence[str],
    percentiles: Sequence[float],
    goals_ms: Mapping[str, float],
) -> dict[str, Any]:
    done = [answer for answer in answers if not answer.error]
    num_prompt = sum(answer.num_prompt_tokens for answer in done)
    num_output = sum(answer.num_output_tokens for answer in done)
    result: dict[str, Any] = {
        "duration": duration_s,
        "completed": len(done),
        "failed": len(answers) - len(done),
        "total_input_tokens": num_prompt,
        "total_output_tokens": num_output,
        "request_throughput": len(done) / duration_s,
        "request_goodput": good_requests(done, goals_ms) / duration_s if goals_ms else None,
        "output_throughput": num_output / duration_s,
        "total_token_throughput": (num_prompt + num_output) / duration_s,
        "max_output_tokens_per_s": peak_tokens_per_s(done),
        "max_concurrent_requests": peak_requests(answers),
    }
    measured = values_ms(done)
    for metric in metrics:
        result |= statistics(metric, measured[metric], percentiles)
    return result


def statistics(metric: str, values: np.ndarray, percentiles: Sequence[float]) -> dict[str, float]:
    """mean_, median_, std_ and p<n>_ of a metric; zeros where nothing was measured."""
    if not values.size:
        values = np.zeros(1)
    found = {
        f"mean_{metric}_ms": float(values.mean()),
        f"median_{metric}_ms": float(np.median(values)),
        f"std_{metric}_ms": float(values.std()),
    }
    for percentile in percentiles:
        found[f"p{percentile:g}_{metric}_ms"] = float(np.percentile(values, percentile))
    return found


def good_requests(answers: Sequence[Answer], goals_ms: Mapping[str, float]) -> int:
    """How many met every goal."""

    def is_good(answer: Answer) -> bool:
        seconds = {
            "ttft": answer.first_token_s,
            "tpot": answer.per_output_token_s if answer.num_output_tokens > 1 else 0.0,
            "e2el": answer.total_s,
        }
        return all(seconds[name] * 1000 <= goal for name, goal in goals_ms.items())

    return sum(map(is_good, answers))


def peak_tokens_per_s(answers: Sequence[Answer]) -> float:
    """Of the best second; the tokens of an answer are spread evenly over its events."""
    times: list[float] = []
    weights: list[float] = []
    for answer in answers:
        events = answer.token_times_s()
        times += events
        weights += [answer.num_output_tokens / len(events)] * len(events)
    if not times:
        return 0.0
    order = np.argsort(times)
    moments = np.asarray(times)[order]
    counted = np.concatenate(([0.0], np.cumsum(np.asarray(weights)[order])))
    ends = np.searchsorted(moments, moments + WINDOW_S)
    return float((counted[ends] - counted[:-1]).max() / WINDOW_S)


def peak_requests(answers: Sequence[Answer]) -> int:
    """Most requests that were open at one moment."""
    changes = [(answer.start_s, 1) for answer in answers]
    changes += [(answer.start_s + answer.total_s, -1) for answer in answers]
    if not changes:
        return 0
    return int(np.cumsum([change for _, change in sorted(changes)]).max())


def parse_percentiles(text: str) -> list[float]:
    """Raises ConfigError."""
    try:
        found = [float(word) for word in text.split(",")]
    except ValueError:
        found = [-1.0]
    if not all(0 <= value <= 100 for value in found):
        raise ConfigError(f"--metric-percentiles {text}: must be numbers of 0 to 100, as 50,99.9.")
    return found


def parse_metrics(text: str) -> list[str]:
    """Raises ConfigError."""
    names = [word.strip() for word in text.split(",") if word.strip()]
    unknown = [name for name in names if name not in METRICS]
    if unknown:
        raise ConfigError(
            f"--percentile-metrics {text}: {unknown[0]} is none of {', '.join(METRICS)}."
        )
    return names


def parse_goals(words: Sequence[str]) -> dict[str, float]:
    """Milliseconds by metric, of words such as ttft:100. Raises ConfigError."""
    goals: dict[str, float] = {}
    for word in words:
        name, _, text = word.partition(":")
        try:
            goals[name] = float(text)
        except ValueError:
            goals[name] = -1.0
        if name not in GOODPUT_METRICS or not goals[name] > 0:
            raise ConfigError(
                f"--goodput {word}: must be a metric ({', '.join(GOODPUT_METRICS)}), a colon and "
                "milliseconds above 0, as ttft:100."
            )
    return goals
