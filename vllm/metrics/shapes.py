"""Metrics of prepared shapes: how often each was launched, its padding, what preparing it took."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from vllm.messages.shapes import ShapeUsage
from vllm.metrics.families import ENGINE_LABELS, EngineLabels

# name, help, field of ShapeUsage
COUNTERS: Final = (
    ("vllm:hpu_bucket_hits", "Launches of a bucket", "hits"),
    ("vllm:hpu_bucket_tokens", "Tokens of requests in launches of a bucket", "tokens"),
    ("vllm:hpu_bucket_padding_tokens", "Tokens of padding in them", "padding_tokens"),
    ("vllm:hpu_bucket_blocks", "KV blocks of requests in launches of a bucket", "used_blocks"),
    ("vllm:hpu_bucket_padding_blocks", "KV blocks of padding in them", "padding_blocks"),
)
GAUGES: Final = (
    ("vllm:hpu_bucket_compile_seconds", "Time that preparing a bucket took", "compile_s"),
    ("vllm:hpu_bucket_graph_bytes", "Memory that capturing a bucket took", "graph_bytes"),
)


class ShapeMetrics(Collector):
    """Shows what each engine counted last; nothing on devices that prepare no shapes.

    An engine's counts are cumulative, so nothing is added up here, and any of several servers can
    show them. A core that has been started anew counts from 0, as Prometheus expects of counters.
    """

    def __init__(self, labels: Sequence[EngineLabels]) -> None:
        """`labels`: of each core."""
        self._labels = labels
        self._shapes: Sequence[Sequence[ShapeUsage]] = [()] * len(labels)

    def show(self, shapes: Sequence[Sequence[ShapeUsage]]) -> None:
        """`shapes`: those of each core."""
        self._shapes = shapes

    def collect(self) -> Iterator[Metric]:
        if not any(self._shapes):
            return
        names = (*ENGINE_LABELS, "phase", "bucket")
        for kind, families in ((CounterMetricFamily, COUNTERS), (GaugeMetricFamily, GAUGES)):
            for name, text, field in families:
                family = kind(name, text, labels=names)
                for labels, shapes in zip(self._labels, self._shapes, strict=True):
                    for shape in shapes:
                        values = (*labels, shape.phase, shape.name)
                        family.add_metric(values, float(getattr(shape, field)))
                yield family
