"""The CPU platform."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from vllm import envs
from vllm.device.attention import AttentionBackend
from vllm.device.capabilities import Capabilities
from vllm.device.collectives import Collectives
from vllm.device.device import Device
from vllm.device.stage_link import StageLink
from vllm.distributed import rendezvous
from vllm.distributed.groups import Group
from vllm.distributed.place import Place
from vllm.envs import Environment
from vllm.errors import ConfigError
from vllm.logger import init_logger
from vllm.platforms.base import Platform
from vllm.platforms.cpu import native
from vllm.platforms.cpu.attention import NativeAttention, TorchAttention
from vllm.platforms.cpu.device import CpuDevice
from vllm.platforms.cpu.threads import num_usable_cores, plan_threads

if TYPE_CHECKING:
    from torch.distributed import Store

    from vllm.config.vllm import VllmConfig
    from vllm.device.graphs import GraphRunner
    from vllm.device.planner import Planner
    from vllm.device.warmup import WarmUpRunner
    from vllm.layers.methods import DeviceMethods
    from vllm.messages.facts import WorkerFacts
    from vllm.ops.registry import Ops

logger = init_logger(__name__)

GIB = 1 << 30

BLOCK_SIZES = (16, 32, 64, 128, 256)  # what the kernels' inner loops are made for


class CpuPlatform(Platform):
    name = "cpu"
    capabilities = Capabilities(
        dtypes=(torch.float32, torch.bfloat16, torch.float16),
        default_dtype=torch.float32,
        default_memory_utilization=0.5,  # the machine has other things to do
    )

    ranks_have_cores = True  # as of `prepare_process`

    def resolve(self, config: VllmConfig) -> VllmConfig:
        block_size = config.cache.block_size
        if block_size not in BLOCK_SIZES:
            raise ConfigError(
                f"--block-size {block_size}: attention on the CPU takes {BLOCK_SIZES}; "
                f"leave the flag out for {self.capabilities.default_block_size}"
            )
        _tell_of_row_chunks()
        return config

    def device(self, index: int) -> Device:
        return CpuDevice()

    def prepare_process(self, config: VllmConfig, place: Place) -> None:
        # Before this process is bound to some of them.
        self.ranks_have_cores = num_usable_cores() >= place.local_size
        plan = plan_threads(
            envs.VLLM_CPU_OMP_THREADS_BIND,
            place.local_rank,
            place.local_size,
            torch.get_num_threads(),  # OMP_NUM_THREADS where set, else the number of cores
        )
        if plan.cpus:
            os.sched_setaffinity(0, plan.cpus)
        torch.set_num_threads(plan.num_threads)

    def planner(self, config: VllmConfig, num_blocks: int) -> Planner:
        from vllm.device.planner import UnifiedPlanner

        return UnifiedPlanner(config.cache.block_size if num_blocks else 0)

    def graph_runner(self, config: VllmConfig, place: Place) -> GraphRunner:
        from vllm.device.graphs import EagerRunner
        from vllm.platforms.cpu.graphs import CpuGraphRunner

        # Sums through sockets are calls that no graph sees.
        is_seen = native.is_available() and place.shares_memory
        captures = is_seen and not config.device.enforce_eager
        return CpuGraphRunner() if captures else EagerRunner()

    def collectives(self, config: VllmConfig, place: Place) -> Collectives:
        if place.tp.size == 1:
            return super().collectives(config, place)
        meeting = partial(rendezvous.meeting, place, name=f"stage {place.pp.rank}")
        return self._connected(config, place, place.tp, place.memory, meeting)

    def expert_collectives(self, config: VllmConfig, place: Place) -> Collectives:
        name = f"experts of stage {place.pp.rank}"
        meeting = partial(rendezvous.meeting_of_copies, place, name=name)
        return self._connected(config, place, place.ep, place.experts_memory, meeting)

    def _connected(
        self,
        config: VllmConfig,
        place: Place,
        group: Group,
        memory: str,
        meeting: Callable[..., Store],
    ) -> Collectives:
        """Through `memory`; without, through sockets of those who come to `meeting`."""
        limit_s = config.parallel.host_timeout_seconds
        if native.is_available() and memory:
            from vllm.platforms.cpu.collectives import SharedMemory

            return SharedMemory(group, memory, limit_s, self.ranks_have_cores)
        from vllm.platforms.cpu.gloo import Gloo

        limit = rendezvous.limit_of(limit_s)
        return Gloo(meeting(limit=limit), group, limit, place.address)

    def stage_link(self, config: VllmConfig, place: Place) -> StageLink:
        from vllm.platforms.cpu.stage_link import GlooLink

        limit = rendezvous.limit_of(config.parallel.host_timeout_seconds)
        meeting = rendezvous.meeting(place, limit, f"share {place.tp.rank}")
        return GlooLink(meeting, place.pp, limit, place.address)

    def warm_up(self, config: VllmConfig, runner: WarmUpRunner, ranks: Collectives) -> None:
        from vllm.platforms.cpu.warmup import warm_up

        warm_up(
            runner.rehearse,
            ranks.agreed,
            max_rows=config.scheduler.max_num_seqs,
            max_tokens=config.scheduler.max_num_batched_tokens,
            max_row_tokens=config.model.max_model_len,
            block_size=config.cache.block_size,
        )

    def kv_cache_budget(self, config: VllmConfig, facts: WorkerFacts) -> int:
        # Ranks share the memory of their machine.
        num_ranks = facts.local_size
        share = config.cache.gpu_memory_utilization / num_ranks
        all_weights = facts.weight_bytes * num_ranks
        usable = int(share * (facts.free_bytes + all_weights)) - facts.weight_bytes
        budget = max(0, usable - facts.activation_bytes)
        logger.info(
            "Memory: %.2f GiB free of %.2f; %.0f %% of what was free before loading, less %.2f GiB "
            "of weights and %.2f GiB for activations, leaves %.2f GiB for the KV cache",
            facts.free_bytes / GIB,
            facts.total_bytes / GIB,
            100 * share,
            facts.weight_bytes / GIB,
            facts.activation_bytes / GIB,
            budget / GIB,
        )
        return budget

    def attention_backends(self, config: VllmConfig) -> Sequence[AttentionBackend]:
        return NativeAttention(), TorchAttention()

    def weight_methods(self, ops: Ops) -> DeviceMethods:
        from vllm.platforms.cpu.weights import PackedExperts, PackedLinear

        methods = super().weight_methods(ops)
        if not native.is_available():
            return methods
        return replace(methods, plain=PackedLinear(), plain_experts=PackedExperts())

    def ops(self) -> Mapping[str, Callable[..., Any]]:
        return native.native_ops()


def _tell_of_row_chunks() -> None:
    env = Environment()
    for name, neutral in (
        ("VLLM_ROW_PARALLEL_CHUNKS", 1),
        ("VLLM_ROW_PARALLEL_CHUNK_THRESHOLD", 8192),
    ):
        if env.value(name) != neutral:
            logger.warning_once(
                "%s=%d has no effect on the CPU: ranks sum with the cores that multiply, so that "
                "neither can hide the other.",
                name,
                env.value(name),
            )
