"""A platform for tests of the configuration: facts only, no device behind it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from vllm.config.vllm import VllmConfig
from vllm.device.attention import AttentionBackend
from vllm.device.capabilities import Capabilities
from vllm.device.collectives import Collectives
from vllm.device.device import Device
from vllm.device.graphs import GraphRunner
from vllm.device.planner import Planner
from vllm.device.warmup import WarmUpRunner
from vllm.distributed.place import Place
from vllm.messages.facts import WorkerFacts
from vllm.platforms.base import Platform


class FactsOnly(Platform):
    """`default_depth` and dtypes as given; its `resolve` changes nothing."""

    name = "facts"

    def __init__(
        self, dtypes: tuple[torch.dtype, ...] = (torch.float32,), default_depth: int = 1
    ) -> None:
        self.capabilities = Capabilities(
            dtypes=dtypes,
            default_dtype=dtypes[0],
            default_block_size=128,
            default_depth=default_depth,
        )

    def resolve(self, config: VllmConfig) -> VllmConfig:
        return config

    def device(self, index: int) -> Device:
        raise NotImplementedError

    def prepare_process(self, config: VllmConfig, place: Place) -> None:
        raise NotImplementedError

    def planner(self, config: VllmConfig, num_blocks: int) -> Planner:
        raise NotImplementedError

    def graph_runner(self, config: VllmConfig, place: Place) -> GraphRunner:
        raise NotImplementedError

    def warm_up(self, config: VllmConfig, runner: WarmUpRunner, tp: Collectives) -> None:
        raise NotImplementedError

    def kv_cache_budget(self, config: VllmConfig, facts: WorkerFacts) -> int:
        raise NotImplementedError

    def attention_backends(self, config: VllmConfig) -> Sequence[AttentionBackend]:
        return ()

    def ops(self) -> Mapping[str, Callable[..., Any]]:
        return {}
