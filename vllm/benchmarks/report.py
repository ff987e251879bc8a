"""Figures of a run: lines for people and for scripts that read vLLM's, and JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Row = tuple[str, str]
WIDTH, NAME_WIDTH = 50, 40
TITLES = {
    "ttft": "Time to First Token",
    "tpot": "Time per Output Token (excl. 1st token)",
    "itl": "Inter-token Latency",
    "e2el": "End-to-end Latency",
}


def percentiles(values: Sequence[float], wanted: Sequence[float]) -> dict[str, float]:
    """By percentile as text, in the unit of the values."""
    return {f"{p:g}": float(np.percentile(values, p)) for p in wanted}


def table(title: str, rows: Sequence[Row]) -> str:
    width = max(len(name) for name, _ in rows)
    lines = [title, "-" * max(len(title), width + 2)]
    lines += [f"{name:<{width}}  {value}" for name, value in rows]
    return "\n".join(lines)


def save(path: str | Path, result: Mapping[str, Any]) -> None:
    Path(path).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def serving_summary(result: Mapping[str, Any]) -> str:
    """The figures of a serving benchmark, one per line, with the names of vLLM's."""
    lines = [
        _headline(" Serving Benchmark Result ", "="),
        _line("Successful requests:", result["completed"]),
        _line("Failed requests:", result["failed"]),
    ]
    if result["max_concurrency"]:
        lines.append(_line("Maximum request concurrency:", result["max_concurrency"]))
    if result["request_rate"] != "inf":
        lines.append(_line("Request rate configured (RPS):", float(result["request_rate"])))
    lines += [
        _line("Benchmark duration (s):", result["duration"]),
        _line("Total input tokens:", result["total_input_tokens"]),
        _line("Total generated tokens:", result["total_output_tokens"]),
        _line("Request throughput (req/s):", result["request_throughput"]),
    ]
    if result["request_goodput"] is not None:
        lines.append(_line("Request goodput (req/s):", result["request_goodput"]))
    lines += [
        _line("Output token throughput (tok/s):", result["output_throughput"]),
        _line("Peak output token throughput (tok/s):", result["max_output_tokens_per_s"]),
        _line("Peak concurrent requests:", result["max_concurrent_requests"]),
        _line("Total Token throughput (tok/s):", result["total_token_throughput"]),
    ]
    for metric, title in TITLES.items():
        lines += _metric_lines(result, metric, title)
    return "\n".join([*lines, "=" * WIDTH])


def _metric_lines(result: Mapping[str, Any], metric: str, title: str) -> list[str]:
    if f"mean_{metric}_ms" not in result:
        return []
    name = metric.upper()
    lines = [
        _headline(title, "-"),
        _line(f"Mean {name} (ms):", result[f"mean_{metric}_ms"]),
        _line(f"Median {name} (ms):", result[f"median_{metric}_ms"]),
    ]
    for key, value in result.items():
        percentile = key.removesuffix(f"_{metric}_ms")
        if percentile != key and percentile[0] == "p":
            lines.append(_line(f"{percentile.upper()} {name} (ms):", value))
    return lines


def _headline(text: str, char: str) -> str:
    return text.center(WIDTH, char)


def _line(name: str, value: float) -> str:
    text = f"{value:.2f}" if isinstance(value, float) else str(value)
    return f"{name:<{NAME_WIDTH}} {text:<10}".rstrip()
