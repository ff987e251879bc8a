"""Metrics as objects, for programs that hold the engine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry
from prometheus_client import Metric as Family

PREFIX = "vllm:"


@dataclass(frozen=True, slots=True)
class Metric:
    name: str
    labels: dict[str, str]


@dataclass(frozen=True, slots=True)
class Counter(Metric):
    value: int


@dataclass(frozen=True, slots=True)
class Vector(Metric):
    """A counter per position. None is made: they are of speculative decoding."""

    values: list[int]


@dataclass(frozen=True, slots=True)
class Gauge(Metric):
    value: float


@dataclass(frozen=True, slots=True)
class Histogram(Metric):
    count: int
    sum: float
    buckets: dict[str, int]  # by upper bound, cumulative


def read_metrics(registry: CollectorRegistry) -> list[Metric]:
    """The engine's own metrics: one object per name and labels."""
    return [
        metric
        for family in registry.collect()
        if family.name.startswith(PREFIX)
        for metric in _metrics_of(family)
    ]


def _metrics_of(family: Family) -> Iterator[Metric]:
    if family.type == "histogram":
        yield from _histograms_of(family)
        return
    for sample in family.samples:
        if family.type == "counter":
            yield Counter(family.name, sample.labels, int(sample.value))
        else:
            yield Gauge(family.name, sample.labels, sample.value)


def _histograms_of(family: Family) -> Iterator[Histogram]:
    """Samples of a histogram come as its buckets, then the count, then the sum."""
    buckets: dict[str, int] = {}
    count = 0
    for sample in family.samples:
        if sample.name.endswith("_bucket"):
            buckets[sample.labels["le"]] = int(sample.value)
        elif sample.name.endswith("_count"):
            count = int(sample.value)
        elif sample.name.endswith("_sum"):
            yield Histogram(family.name, sample.labels, count, sample.value, buckets)
            buckets = {}
