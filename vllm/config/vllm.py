"""All configuration of one engine, resolved: nothing in it is left to be decided."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from vllm.config.cache import CacheConfig
from vllm.config.device import DeviceConfig
from vllm.config.load import LoadConfig
from vllm.config.model import ModelConfig
from vllm.config.observability import ObservabilityConfig
from vllm.config.option import Setting, settings_of
from vllm.config.parallel import ParallelConfig
from vllm.config.scheduler import SchedulerConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmConfig:
    model: ModelConfig
    cache: CacheConfig
    scheduler: SchedulerConfig
    parallel: ParallelConfig
    device: DeviceConfig
    load: LoadConfig
    observability: ObservabilityConfig


GROUPS: dict[str, type] = {
    "model": ModelConfig,
    "cache": CacheConfig,
    "scheduler": SchedulerConfig,
    "parallel": ParallelConfig,
    "device": DeviceConfig,
    "load": LoadConfig,
    "observability": ObservabilityConfig,
}


def all_settings() -> Iterator[Setting]:
    for group in GROUPS.values():
        yield from settings_of(group)
