"""Names that metrics had, for boards that still read them: copies made when they are shown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, Protocol

from prometheus_client import Metric
from prometheus_client.registry import Collector

OLDER_NAMES: Final = {
    "vllm:inter_token_latency_seconds": "vllm:time_per_output_token_seconds",
    "vllm:kv_cache_usage_perc": "vllm:gpu_cache_usage_perc",
    "vllm:prefix_cache_queries": "vllm:gpu_prefix_cache_queries",
    "vllm:prefix_cache_hits": "vllm:gpu_prefix_cache_hits",
}


class Source(Protocol):
    def collect(self) -> Iterable[Metric]: ...


class WithOlderNames(Collector):
    """Everything of `source`, some of it twice."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def collect(self) -> Iterator[Metric]:
        for family in self.source.collect():
            yield family
            if older := OLDER_NAMES.get(family.name):
                copy = Metric(older, f"Older name of {family.name}", family.type)
                copy.samples = [
                    sample._replace(name=older + sample.name.removeprefix(family.name))
                    for sample in family.samples
                ]
                yield copy
