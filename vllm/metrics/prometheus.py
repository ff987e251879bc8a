"""Prometheus metrics of the engines behind one front end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING

import msgspec
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Gauge,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from typing_extensions import Self

from vllm.messages.engine import EngineReady, EngineStats
from vllm.messages.facts import RankMemory
from vllm.metrics.engine_series import EngineSeries
from vllm.metrics.families import ENGINE_LABELS, SHARED_GAUGE, EngineLabels, Families
from vllm.metrics.older_names import WithOlderNames
from vllm.metrics.shapes import ShapeMetrics
from vllm.metrics.shared import is_shared, shared_registry
from vllm.metrics.silence import SilenceMetric
from vllm.metrics.stats import IterationStats

if TYPE_CHECKING:
    from vllm.config.vllm import VllmConfig

CONTENT_TYPE = CONTENT_TYPE_LATEST


class PrometheusStats:
    """A StatLogger. Owns its registry, so that several front ends can live in one process.

    Where several API servers share engines (vllm.metrics.shared), every one counts its own
    requests, one of them has `counts_engine` and counts the steps of all engines, and any of them
    shows the metrics of all.
    """

    def __init__(
        self,
        model_name: str,
        max_model_len: int,
        caches: Sequence[Mapping[str, str]],
        counts_engine: bool = True,
        first_engine: int = 0,
    ) -> None:
        """`caches`: settings of the KV cache by core, all under the same names.

        The cores are engines `first_engine` and following among all copies of the model.
        """
        self.registry = CollectorRegistry()
        self.labels = [
            EngineLabels(model_name, str(first_engine + core)) for core in range(len(caches))
        ]
        disable_created_metrics()  # type: ignore[no-untyped-call]
        families = Families(self.registry, max_model_len)
        self.engines = [EngineSeries(families, labels, counts_engine) for labels in self.labels]
        self._show_caches(caches)
        self.shapes, self.silence = ShapeMetrics(self.labels), SilenceMetric(self.labels)
        for collector in (self.shapes, self.silence):
            self.registry.register(collector)
        if not is_shared():
            ProcessCollector(registry=self.registry)
            PlatformCollector(registry=self.registry)
            GCCollector(registry=self.registry)

    @classmethod
    def of(
        cls,
        config: VllmConfig,
        readies: Sequence[EngineReady],
        counts_engine: bool = True,
    ) -> Self:
        """Metrics of running cores; `readies` are what each has measured."""
        cache, model = config.cache, config.model
        first_engine = config.parallel.data_parallel_start_rank
        settings = {field.name: str(getattr(cache, field.name)) for field in fields(cache)}
        caches = [
            settings | {"num_gpu_blocks": str(ready.num_blocks), "num_cpu_blocks": "0"}
            for ready in readies
        ]
        name = model.served_model_name[0]
        stats = cls(name, model.max_model_len, caches, counts_engine, first_engine)
        if counts_engine:
            stats.show_ranks([ready.ranks for ready in readies])
        return stats

    def show_ranks(self, ranks: Sequence[Sequence[RankMemory]]) -> None:
        """`ranks`: those of each core."""
        gauge = Gauge(
            "vllm:rank_memory_bytes",
            "What the memory of a rank's device goes to",
            (*ENGINE_LABELS, "rank", "part"),
            registry=self.registry,
            multiprocess_mode=SHARED_GAUGE,
        )
        for labels, of_core in zip(self.labels, ranks, strict=True):
            for rank, memory in enumerate(of_core):
                for part, num_bytes in msgspec.structs.asdict(memory).items():
                    gauge.labels(*labels, str(rank), part).set(num_bytes)

    def record(self, engine: EngineStats, iteration: IterationStats, core: int = 0) -> None:
        self.engines[core].record(engine, iteration)

    def exposition(self) -> bytes:
        shown = CollectorRegistry()
        shown.register(WithOlderNames(shared_registry() if is_shared() else self.registry))
        if is_shared():  # these come from the engine as they are, to whichever server is asked
            shown.register(self.shapes)
            shown.register(self.silence)
        return generate_latest(shown)

    def _show_caches(self, caches: Sequence[Mapping[str, str]]) -> None:
        names = tuple(caches[0])
        gauge = Gauge(
            "vllm:cache_config_info",
            "Settings of the KV cache",
            ("engine", *names),
            registry=self.registry,
            multiprocess_mode=SHARED_GAUGE,
        )
        for labels, cache in zip(self.labels, caches, strict=True):
            gauge.labels(labels.engine, *(cache[name] for name in names)).set(1)
