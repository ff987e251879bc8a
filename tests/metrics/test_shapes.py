"""Metrics of prepared shapes."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from vllm.messages.shapes import ShapeUsage
from vllm.metrics.prometheus import PrometheusStats
from vllm.metrics.reader import Counter, Gauge, read_metrics

SHAPES = [
    ShapeUsage("prefill", 1, 128, 0, 2, 200, 56, 0, 0, 1.25, 0),
    ShapeUsage("decode", 8, 1, 128, 5, 30, 10, 300, 340, 0.5, 4096),
]


def test_every_shape_has_its_labels_and_values() -> None:
    stats = PrometheusStats("m", 100, [{}])
    stats.shapes.show([SHAPES])
    families = text_string_to_metric_families(stats.exposition().decode())
    found = {
        (sample.name, sample.labels.get("bucket")): (sample.labels, sample.value)
        for family in families
        for sample in family.samples
    }
    labels, hits = found["vllm:hpu_bucket_hits_total", "8x1x128"]
    assert hits == 5
    assert labels == {"model_name": "m", "engine": "0", "phase": "decode", "bucket": "8x1x128"}
    assert found["vllm:hpu_bucket_tokens_total", "1x128x0"][1] == 200
    assert found["vllm:hpu_bucket_padding_tokens_total", "1x128x0"][1] == 56
    assert found["vllm:hpu_bucket_padding_blocks_total", "8x1x128"][1] == 340
    assert found["vllm:hpu_bucket_compile_seconds", "1x128x0"][1] == 1.25
    assert found["vllm:hpu_bucket_graph_bytes", "8x1x128"][1] == 4096


def test_what_is_shown_last_replaces_what_was_shown_before() -> None:
    stats = PrometheusStats("m", 100, [{}])
    stats.shapes.show([SHAPES])
    stats.shapes.show([SHAPES[1:]])
    hits = [m for m in read_metrics(stats.registry) if m.name == "vllm:hpu_bucket_hits"]
    assert [(m.labels["bucket"], type(m), m.value) for m in hits] == [("8x1x128", Counter, 5)]
    gauges = [m for m in read_metrics(stats.registry) if m.name == "vllm:hpu_bucket_graph_bytes"]
    assert [type(m) for m in gauges] == [Gauge]


def test_devices_without_prepared_shapes_show_none() -> None:
    assert b"hpu_bucket" not in PrometheusStats("m", 100, [{}]).exposition()


def test_shapes_of_each_engine_have_its_label() -> None:
    stats = PrometheusStats("m", 100, [{}, {}])
    stats.shapes.show([[], SHAPES[1:]])
    (hits,) = [m for m in read_metrics(stats.registry) if m.name == "vllm:hpu_bucket_hits"]
    assert (hits.labels["engine"], hits.labels["model_name"]) == ("1", "m")
    stats.shapes.show([SHAPES[:1], SHAPES[1:]])
    hits = [m for m in read_metrics(stats.registry) if m.name == "vllm:hpu_bucket_hits"]
    assert [(m.labels["engine"], m.value) for m in hits] == [("0", 2), ("1", 5)]
