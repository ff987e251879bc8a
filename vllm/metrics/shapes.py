"""Metrics of prepared shapes: how often each was launched, its padding, what preparing it took."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from vllm.messages.shapes import ShapeUsage

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
    """Shows what the engine counted last; nothing on devices that prepare no shapes.

    The engine's counts are cumulative, so nothing is added up here, and any of several servers can
    show them.
    """

    def __init__(self, labels: Mapping[str, str]) -> None:
        self._labels = labels
        self._shapes: Sequence[ShapeUsage] = ()

    def show(self, shapes: Sequence[ShapeUsage]) -> None:
        self._shapes = shapes

    def collect(self) -> Iterator[Metric]:
        shapes = self._shapes
        if not shapes:
            return
        names = (*self._labels, "phase", "bucket")
        for kind, families in ((CounterMetricFamily, COUNTERS), (GaugeMetricFamily, GAUGES)):
            for name, text, field in families:
                family = kind(name, text, labels=names)
                for shape in shapes:
                    labels = (*self._labels.values(), shape.phase, shape.name)
                    family.add_metric(labels, float(getattr(shape, field)))
                yield family
