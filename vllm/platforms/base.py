"""What a device supplies to the one engine: memory, transfers, ops, attention, graphs, a policy."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from vllm.device.collectives import Alone, Collectives
from vllm.device.device import Device
from vllm.device.stage_link import StageLink
from vllm.distributed.place import Place
from vllm.errors import ConfigError
from vllm.platforms.facts import PlatformFacts

if TYPE_CHECKING:
    from vllm.config.vllm import VllmConfig
    from vllm.device.attention import AttentionBackend
    from vllm.device.graphs import GraphRunner
    from vllm.device.observer import StepObserver
    from vllm.device.planner import Planner
    from vllm.device.warmup import WarmUpRunner
    from vllm.layers.methods import DeviceMethods
    from vllm.messages.facts import WorkerFacts
    from vllm.ops.registry import Ops


class Platform(PlatformFacts):
    """Everything shared code may ask of a kind of device."""

    @abstractmethod
    def resolve(self, config: VllmConfig) -> VllmConfig:
        """`config` with this platform's choices in place of what is still automatic."""

    @abstractmethod
    def prepare_process(self, config: VllmConfig, place: Place) -> None:
        """Threads, affinity, allocator: called once in each worker before tensors are made."""

    @contextmanager
    def devices(self, config: VllmConfig, ranks: Sequence[int]) -> Iterator[Sequence[int]]:
        """Set devices of this machine aside for its `ranks`, which know them as `Place.device`.

        Called in the process that starts the ranks, and left when they have ended. Raises
        ConfigError if there are too few.
        """
        yield range(len(ranks))

    @abstractmethod
    def planner(self, config: VllmConfig, num_blocks: int) -> Planner:
        """How steps are cut into launches, over a cache of `num_blocks` blocks; 0: none."""

    @abstractmethod
    def graph_runner(self, config: VllmConfig, place: Place) -> GraphRunner: ...

    @abstractmethod
    def warm_up(self, config: VllmConfig, runner: WarmUpRunner, ranks: Collectives) -> None:
        """Have the runner rehearse whatever must not happen first in a request.

        All `ranks`, which launch together, must rehearse the same.
        """

    @abstractmethod
    def kv_cache_budget(self, config: VllmConfig, facts: WorkerFacts) -> int:
        """Bytes of a rank's memory that --gpu-memory-utilization leaves for its KV cache."""

    @abstractmethod
    def attention_backends(self, config: VllmConfig) -> Sequence[AttentionBackend]:
        """In order of preference; they need not be able to run here (`rejects`)."""

    @abstractmethod
    def ops(self) -> Mapping[str, Callable[..., Any]]:
        """Overrides of reference ops (see vllm.ops.registry)."""

    def weight_methods(self, ops: Ops) -> DeviceMethods:
        """How weights are stored and multiplied: by torch, unless a platform knows better."""
        from vllm.layers.reference_methods import reference_methods

        return reference_methods(ops)

    def collectives(self, config: VllmConfig, place: Place) -> Collectives:
        """What ranks that share layers compute together. Raises ConfigError if they cannot."""
        if place.tp.size == 1:
            return Alone()
        raise ConfigError(
            f"{place.tp.size} ranks cannot share a model on this platform. Use "
            "--tensor-parallel-size 1."
        )

    def expert_collectives(self, config: VllmConfig, place: Place) -> Collectives:
        """The same of the ranks of all copies that share experts, where `place` says so.

        Called after `collectives`.
        """
        raise ConfigError(
            f"{place.ep.size} ranks cannot share experts on this platform. Leave "
            "--enable-expert-parallel or --data-parallel-size out."
        )

    def stage_link(self, config: VllmConfig, place: Place) -> StageLink:
        """What connects the stages of a pipeline. Raises ConfigError if they cannot be connected.

        Called after `collectives`, where `place.pp` has several.
        """
        raise ConfigError(
            f"{place.pp.size} stages cannot compute one model on this platform. Use "
            "--pipeline-parallel-size 1."
        )

    def report(self) -> list[tuple[str, str]]:
        """Of the devices, for `vllm collect-env`: names and values. Takes none of them."""
        return []

    def profiler_activities(self) -> Sequence[torch.profiler.ProfilerActivity]:
        """What the torch profiler is to record, of the host and of the device."""
        return (torch.profiler.ProfilerActivity.CPU,)

    def observers(self, config: VllmConfig, device: Device, rank: int) -> Sequence[StepObserver]:
        """Who watches the steps of a rank, besides those that watch on any platform."""
        return ()
