"""The metric of an engine that hangs, which cannot say so itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector


class SilenceMetric(Collector):
    """Shows what the front end found last; any of several servers finds the same."""

    def __init__(self, labels: Mapping[str, str]) -> None:
        self._labels = labels
        self.seconds = 0.0

    def collect(self) -> Iterator[Metric]:
        gauge = GaugeMetricFamily(
            "vllm:engine_silence_seconds",
            "Since the last sign of life of the engine's process, which gives one every second "
            "however long a step takes",
            labels=tuple(self._labels),
        )
        gauge.add_metric(tuple(self._labels.values()), self.seconds)
        yield gauge
