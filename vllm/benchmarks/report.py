"""Figures of a run: percentiles, a table for people and JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Row = tuple[str, str]


def summary(values_s: Sequence[float], percentiles: Sequence[float]) -> dict[str, float]:
    """Mean, and percentiles by name (p50, p99.9), in milliseconds; empty without values."""
    if not values_s:
        return {}
    values_ms = np.asarray(values_s) * 1000
    figures = {"mean_ms": float(values_ms.mean())}
    for percentile in percentiles:
        figures[f"p{percentile:g}_ms"] = float(np.percentile(values_ms, percentile))
    return figures


def latency_row(name: str, figures: Mapping[str, float]) -> Row:
    texts = (f"{key.removesuffix('_ms')} {value:.2f}" for key, value in figures.items())
    return name, "  ".join(texts) + " ms" if figures else "-"


def table(title: str, rows: Sequence[Row]) -> str:
    width = max(len(name) for name, _ in rows)
    lines = [title, "-" * max(len(title), width + 2)]
    lines += [f"{name:<{width}}  {value}" for name, value in rows]
    return "\n".join(lines)


def save(path: str | Path, result: Mapping[str, Any]) -> None:
    Path(path).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
