"""All configuration of one engine, resolved: nothing in it is left to be decided."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from vllm.config.cache import CacheConfig
from vllm.config.device import DeviceConfig
from vllm.config.expert_balance import ExpertBalanceConfig
from vllm.config.load import LoadConfig
from vllm.config.model import ModelConfig
from vllm.config.observability import ObservabilityConfig
from vllm.config.option import Setting, settings_of
from vllm.config.parallel import ParallelConfig
from vllm.config.scheduler import SchedulerConfig
from vllm.config.structured import StructuredOutputsConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmConfig:
    model: ModelConfig
    cache: CacheConfig
    scheduler: SchedulerConfig
    parallel: ParallelConfig
    device: DeviceConfig
    load: LoadConfig
    structured_outputs: StructuredOutputsConfig
    observability: ObservabilityConfig
    expert_balance: ExpertBalanceConfig = ExpertBalanceConfig()

    @property
    def spreads_experts(self) -> bool:
        """Whether copies of the model share its experts, so that they run every launch together."""
        parallel = self.parallel
        copies = parallel.data_parallel_size
        return copies > 1 and parallel.enable_expert_parallel and self.model.has_experts

    @property
    def restarts_cores(self) -> bool:
        """Whether engine cores are started again when they end, without the server."""
        return self.parallel.served_copies > 1 or self.spreads_experts

    # By vLLM's names.

    @property
    def model_config(self) -> ModelConfig:
        return self.model

    @property
    def cache_config(self) -> CacheConfig:
        return self.cache

    @property
    def scheduler_config(self) -> SchedulerConfig:
        return self.scheduler

    @property
    def parallel_config(self) -> ParallelConfig:
        return self.parallel

    @property
    def device_config(self) -> DeviceConfig:
        return self.device

    @property
    def load_config(self) -> LoadConfig:
        return self.load

    @property
    def structured_outputs_config(self) -> StructuredOutputsConfig:
        return self.structured_outputs

    @property
    def observability_config(self) -> ObservabilityConfig:
        return self.observability


GROUPS: dict[str, type] = {
    "model": ModelConfig,
    "cache": CacheConfig,
    "scheduler": SchedulerConfig,
    "parallel": ParallelConfig,
    "expert balance": ExpertBalanceConfig,
    "device": DeviceConfig,
    "load": LoadConfig,
    "structured outputs": StructuredOutputsConfig,
    "observability": ObservabilityConfig,
}


def all_settings() -> Iterator[Setting]:
    for group in GROUPS.values():
        yield from settings_of(group)


def described(config: VllmConfig) -> dict[str, dict[str, Any]]:
    """Settings and facts by group, as JSON can hold them. No secrets."""
    return {
        group: {
            field.name: plain(getattr(part, field.name)) for field in fields(part) if field.repr
        }
        for group, part in ((group, getattr(config, group.replace(" ", "_"))) for group in GROUPS)
    }


def plain(value: Any) -> Any:
    """`value` as JSON can hold it; what it has no form for is shown as text."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(map(plain, value), key=str)
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return str(value)
