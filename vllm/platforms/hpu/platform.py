"""The HPU platform."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import torch

from vllm import envs
from vllm.device.attention import AttentionBackend
from vllm.device.capabilities import Capabilities
from vllm.device.collectives import Collectives
from vllm.device.device import Device
from vllm.device.stage_link import StageLink
from vllm.distributed.launched import Launched
from vllm.distributed.place import Place
from vllm.envs import Environment
from vllm.errors import ConfigError
from vllm.logger import init_logger
from vllm.platforms.base import Platform
from vllm.platforms.hpu import bridge, modules
from vllm.platforms.hpu.attention import HpuAttention
from vllm.platforms.hpu.attention.settings import attention_settings
from vllm.platforms.hpu.bucketing import make_demand, make_table
from vllm.platforms.hpu.defragmentation import ContiguousPlacement
from vllm.platforms.hpu.device import HpuDevice
from vllm.platforms.hpu.interfaces import check_interfaces, prepare_host_groups
from vllm.platforms.hpu.memory import log_split, split
from vllm.platforms.hpu.ops import hpu_ops
from vllm.platforms.hpu.planner import PhasedPlanner
from vllm.platforms.hpu.settings import collective_settings, settings_of

if TYPE_CHECKING:
    from vllm.config.vllm import VllmConfig
    from vllm.device.graphs import GraphRunner
    from vllm.device.observer import StepObserver
    from vllm.device.planner import Planner
    from vllm.device.warmup import WarmUpRunner
    from vllm.messages.facts import WorkerFacts

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
        # A step this long multiplies for as long as it reads weights, or longer.
        default_stage_tokens=512,
    )

    def resolve(self, config: VllmConfig) -> VllmConfig:
        if config.cache.block_size != KERNEL_BLOCK_SIZE:
            logger.warning_once(
                "--block-size %d: works on HPU, but inefficiently; its kernels are made for %d.",
                config.cache.block_size,
                KERNEL_BLOCK_SIZE,
            )
        if config.parallel.pipeline_parallel_size > 1:
            bridge.check_tensor_cache()
        return _without_shared_blocks(config)

    def device(self, index: int) -> Device:
        # A rank's process sees its module alone.
        return HpuDevice(index if modules.OWN.module is None else 0)

    @contextmanager
    def devices(self, config: VllmConfig, ranks: Sequence[int]) -> Iterator[Sequence[int]]:
        if config.parallel.world_size > 1 or config.spreads_experts:
            check_interfaces()
        listed = envs.inherited(modules.VISIBLE)
        count = 0 if listed else bridge.require_devices()
        visible = modules.visible_modules(listed, count)
        parallel = config.parallel
        if parallel.is_externally_launched:
            visible = [modules.module_of(Launched.read().local_rank, visible)]
        is_in_process = parallel.distributed_executor_backend not in ("mp", "ray")
        with modules.set_aside(ranks, visible, is_in_process) as chosen:
            yield chosen

    def prepare_process(self, config: VllmConfig, place: Place) -> None:
        if place.everyone.size > 1:
            prepare_host_groups(place)
        if place.pp.size > 1:
            bridge.keep_tensor_cache()
        if place.rank > 0:
            _leave_telling_to_the_first_rank()
        if place.device >= 0:
            modules.acquire(place)
        bridge.load()

    def collectives(self, config: VllmConfig, place: Place) -> Collectives:
        if place.tp.size == 1:
            return super().collectives(config, place)
        from vllm.platforms.hpu.collectives import Hccl

        return Hccl(place, collective_settings(config))

    def expert_collectives(self, config: VllmConfig, place: Place) -> Collectives:
        from vllm.platforms.hpu.collectives import Hccl
        from vllm.platforms.hpu.world import expert_ranks

        return Hccl(place, collective_settings(config), expert_ranks)

    def stage_link(self, config: VllmConfig, place: Place) -> StageLink:
        from vllm.platforms.hpu.stage_link import HcclLink

        return HcclLink(place, collective_settings(config))

    def planner(self, config: VllmConfig, num_blocks: int) -> Planner:
        env = Environment()
        buckets = make_table(config, num_blocks, env)
        demand = make_demand(buckets, env)
        if not env.VLLM_CONTIGUOUS_PA or not num_blocks:
            return PhasedPlanner(buckets, config.cache.block_size, demand=demand)
        moves = env.VLLM_DEFRAG is not False
        placement = ContiguousPlacement(
            num_blocks,
            env.VLLM_DEFRAG_THRESHOLD if moves else None,
            logs_swaps="defrag" in env.VLLM_DEBUG.split(","),
        )
        return PhasedPlanner(buckets, config.cache.block_size, placement, demand)

    def graph_runner(self, config: VllmConfig, place: Place) -> GraphRunner:
        from vllm.platforms.hpu.graphs import make_runner

        return make_runner(settings_of(config))

    def warm_up(self, config: VllmConfig, runner: WarmUpRunner, ranks: Collectives) -> None:
        from vllm.platforms.hpu.warmup import WarmUp

        WarmUp(runner, settings_of(config), config.cache.gpu_memory_utilization, ranks).run()

    def kv_cache_budget(self, config: VllmConfig, facts: WorkerFacts) -> int:
        settings = settings_of(config)
        parts = split(config, settings, facts)
        log_split(config, settings, parts)
        return parts.cache

    def attention_backends(self, config: VllmConfig) -> Sequence[AttentionBackend]:
        return (HpuAttention(attention_settings(config)),)

    def ops(self) -> Mapping[str, Callable[..., Any]]:
        return hpu_ops()

    def report(self) -> list[tuple[str, str]]:
        return [
            ("plugin", f"{bridge.version()}, {bridge.mode_name()}"),
            ("devices", str(bridge.num_devices())),
            *modules.report(),
        ]

    def profiler_activities(self) -> Sequence[torch.profiler.ProfilerActivity]:
        return (torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.HPU)

    def observers(self, config: VllmConfig, device: Device, rank: int) -> Sequence[StepObserver]:
        from vllm.platforms.hpu.shape_tally import ShapeTally
        from vllm.platforms.hpu.step_metrics import step_metrics

        tally = ShapeTally(device, config.cache.block_size, is_logging=rank == 0)
        return [*step_metrics(Environment()), tally]


def _leave_telling_to_the_first_rank() -> None:
    """All ranks prepare and launch the same: one logs it, and writes it down."""
    envs.pass_on("VLLM_BUCKETING_TO_FILE", None)
    ours = logging.getLogger("vllm.platforms.hpu")
    if ours.getEffectiveLevel() == logging.INFO:
        ours.setLevel(logging.WARNING)


def _without_shared_blocks(config: VllmConfig) -> VllmConfig:
    """A contiguous cache says of every block whose it is: there can be one owner only."""
    env = Environment()
    if not env.VLLM_CONTIGUOUS_PA:
        if env.VLLM_DEFRAG:
            raise ConfigError(
                "VLLM_DEFRAG=1: blocks are moved for VLLM_CONTIGUOUS_PA=1 only. Set that too, or "
                "unset it."
            )
        return config
    if config.cache.enable_prefix_caching:
        logger.warning_once("VLLM_CONTIGUOUS_PA=1 turns prefix caching off.")
    return replace(config, cache=replace(config.cache, enable_prefix_caching=False))
