"""The metric of an engine that hangs, which cannot say so itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from vllm.metrics.families import ENGINE_LABELS, EngineLabels


class SilenceMetric(Collector):
    """Shows what the front end found last; any of several servers finds the same."""

    def __init__(self, labels: Sequence[EngineLabels]) -> None:
        """`labels`: of each core."""
        self._labels = labels
        self._seconds: Sequence[float] = [0.0] * len(labels)

    def show(self, seconds: Sequence[float]) -> None:
        """`seconds`: of each core."""
        self._seconds = seconds

    def collect(self) -> Iterator[Metric]:
        gauge = GaugeMetricFamily(
            "vllm:engine_silence_seconds",
            "Since the last sign of life of the engine's process, which gives one every second "
            "however long a step takes",
            labels=ENGINE_LABELS,
        )
        for labels, seconds in zip(self._labels, self._seconds, strict=True):
            gauge.add_metric(labels, seconds)
        yield gauge
