"""How the memory of a device is divided: cache, captured graphs, margin."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vllm.errors import ConfigError
from vllm.logger import init_logger
from vllm.platforms.hpu.settings import HpuSettings

if TYPE_CHECKING:
    from vllm.config.vllm import VllmConfig
    from vllm.messages.facts import WorkerFacts

logger = init_logger(__name__)

GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class MemorySplit:
    """Bytes of one device, after its weights were loaded and a step was measured."""

    free: int
    usable: int  # the share of them that --gpu-memory-utilization allows
    graphs: int
    cache: int

    def __str__(self) -> str:
        return (
            f"Free device memory: {self.free / GIB:.2f} GiB, {self.usable / GIB:.2f} GiB usable, "
            f"{self.graphs / GIB:.2f} GiB reserved for graphs, {self.cache / GIB:.2f} GiB reserved "
            f"for KV cache, {(self.free - self.usable) / GIB:.2f} GiB margin"
        )


def split(config: VllmConfig, settings: HpuSettings, facts: WorkerFacts) -> MemorySplit:
    """The documented division; the utilization is one of what is free, not of the device."""
    free = max(0, facts.free_bytes - facts.activation_bytes)
    usable = int(free * config.cache.gpu_memory_utilization)
    graphs = int(usable * settings.graphs.reserved) if settings.captures_graphs else 0
    return MemorySplit(free, usable, graphs, usable - graphs)


def log_split(config: VllmConfig, settings: HpuSettings, parts: MemorySplit) -> None:
    logger.info(
        "%s (gpu_memory_utilization=%g, VLLM_GRAPH_RESERVED_MEM=%g)",
        parts,
        config.cache.gpu_memory_utilization,
        settings.graphs.reserved,
    )


@contextmanager
def needing(what: str) -> Iterator[None]:
    """Raises ConfigError where the device has too little memory for what the body allocates."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise ConfigError(
            f"--device hpu: the device has too little memory for {what}: {error}. Take a smaller "
            "model or data type, or end other processes on the device (hl-smi shows them); for a "
            "step, also lower --max-num-batched-tokens or --max-num-seqs."
        ) from error


def is_out_of_memory(error: RuntimeError) -> bool:
    return "Allocation failed" in str(error)
