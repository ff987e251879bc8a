"""The HPU platform."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import torch

from vllm.attention.interface import AttentionBackend
from vllm.envs import Environment
from vllm.errors import ConfigError
from vllm.logger import init_logger
from vllm.platforms.base import Capabilities, Device, Platform
from vllm.platforms.hpu import bridge
from vllm.platforms.hpu.attention import HpuAttention
from vllm.platforms.hpu.bucketing import make_table
from vllm.platforms.hpu.device import HpuDevice
from vllm.platforms.hpu.memory import log_split, split
from vllm.platforms.hpu.ops import hpu_ops
from vllm.platforms.hpu.planner import PhasedPlanner
from vllm.platforms.hpu.settings import settings_of

if TYPE_CHECKING:
    from vllm.config.vllm import VllmConfig
    from vllm.worker.facts import WorkerFacts
    from vllm.worker.graphs import GraphRunner
    from vllm.worker.model_runner import ModelRunner
    from vllm.worker.planner import Planner

logger = init_logger(__name__)

KERNEL_BLOCK_SIZE: Final = 128  # one row of the matrix engine


class HpuPlatform(Platform):
    name = "hpu"
    capabilities = Capabilities(
        dtypes=(torch.bfloat16, torch.float32, torch.float16),
        default_dtype=torch.bfloat16,
        static_shapes=True,
        default_block_size=KERNEL_BLOCK_SIZE,
        default_depth=2,
    )

    def resolve(self, config: VllmConfig) -> VllmConfig:
        if config.parallel.world_size > 1:
            raise ConfigError(
                f"{config.parallel.world_size} ranks: several Gaudis are not supported by this "
                "version yet. Leave --tensor-parallel-size and --pipeline-parallel-size out."
            )
        if config.cache.block_size != KERNEL_BLOCK_SIZE:
            logger.warning_once(
                "--block-size %d: works on HPU, but inefficiently; its kernels are made for %d.",
                config.cache.block_size,
                KERNEL_BLOCK_SIZE,
            )
        return config

    def device(self, index: int) -> Device:
        return HpuDevice(index)

    def prepare_process(self, config: VllmConfig, rank: int) -> None:
        bridge.load()

    def planner(self, config: VllmConfig, num_blocks: int) -> Planner:
        env = Environment()
        buckets = make_table(config, num_blocks, env)
        return PhasedPlanner(buckets, config.cache.block_size)

    def graph_runner(self, config: VllmConfig) -> GraphRunner:
        from vllm.platforms.hpu.graphs import make_runner

        return make_runner(settings_of(config))

    def warm_up(self, config: VllmConfig, runner: ModelRunner) -> None:
        from vllm.platforms.hpu.warmup import WarmUp

        WarmUp(runner, settings_of(config), config.cache.gpu_memory_utilization).run()

    def kv_cache_budget(self, config: VllmConfig, facts: WorkerFacts) -> int:
        settings = settings_of(config)
        parts = split(config, settings, facts)
        log_split(config, settings, parts)
        return parts.cache

    def attention_backends(self) -> Sequence[type[AttentionBackend]]:
        return (HpuAttention,)

    def ops(self) -> Mapping[str, Callable[..., Any]]:
        return hpu_ops()
