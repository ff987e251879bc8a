"""What a model is built with: passed down explicitly, so that layers hold no globals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from vllm.device.attention import AttentionBackend, AttentionSpec
from vllm.device.capabilities import Capabilities
from vllm.device.collectives import Alone, Collectives
from vllm.distributed.groups import SINGLE, Group
from vllm.distributed.stages import Stage, stage_of
from vllm.errors import ConfigError
from vllm.layers.cached_attention import Attention
from vllm.layers.dispatch import ExpertRanks
from vllm.layers.expert_placement import Placement
from vllm.layers.expert_shard import ExpertShard, balanced_placement
from vllm.layers.shapes import ShardInfo
from vllm.logger import init_logger
from vllm.ops.registry import Ops

if TYPE_CHECKING:
    from vllm.config.vllm import VllmConfig

logger = init_logger(__name__)


@dataclass(frozen=True, slots=True)
class ModelContext:
    """Everything a layer may depend on at construction. Shared by all layers of one rank."""

    config: VllmConfig
    device: torch.device
    dtype: torch.dtype
    ops: Ops
    capabilities: Capabilities  # of the device
    attention_backends: Sequence[AttentionBackend]  # in order of preference
    tp: Collectives = field(default_factory=Alone)  # the ranks that share every layer
    pp: Group = SINGLE  # the stages that the layers are spread over
    experts: ExpertRanks | None = None  # of all copies, where these share experts
    _logged: set[str] = field(default_factory=set)

    @property
    def shard(self) -> ShardInfo:
        """This rank's place among those that share every layer."""
        return ShardInfo(self.tp.rank, self.tp.size)

    @property
    def divides_experts(self) -> bool:
        """Whether a rank has whole experts, and not some of the width of all."""
        return self.config.parallel.enable_expert_parallel

    def expert_shard(self, num_experts: int) -> ExpertShard:
        """What this rank has of the experts of a layer. Raises UnevenShares."""
        if not self.divides_experts:
            return ExpertShard.of_width(num_experts, self.shard)
        placement = self.config.parallel.expert_placement_strategy
        return ExpertShard.of_whole_experts(num_experts, self.expert_ranks, placement)

    @property
    def expert_ranks(self) -> ShardInfo:
        """This rank's place among those that have the experts of a layer together."""
        if self.experts is None:
            return self.shard
        return ShardInfo(self.experts.ranks.rank, self.experts.ranks.size)

    @property
    def balances_experts(self) -> bool:
        """Whether experts move between ranks, and busy ones have copies."""
        return self.config.expert_balance.enabled

    def expert_placement(self, num_experts: int) -> Placement:
        """Where experts that move are at first, for a layer to move them.

        Raises ConfigError and UnevenShares.
        """
        config = self.config
        return balanced_placement(
            num_experts,
            self.expert_ranks.size,
            config.parallel.expert_placement_strategy,
            config.expert_balance.num_redundant_experts,
        )

    def stage(self, num_layers: int) -> Stage:
        """The layers of this rank's stage, of `num_layers` in all. Raises ConfigError."""
        return stage_of(num_layers, self.pp)

    @property
    def hf_config(self) -> Any:
        """The model's own configuration: attributes as its `config.json` names them."""
        return self.config.model.hf_config

    @property
    def cache_dtype(self) -> torch.dtype:
        return self.config.cache.cache_dtype

    def attention(self, spec: AttentionSpec) -> Attention:
        """An attention layer over the first backend of the platform that can serve `spec`.

        Raises ConfigError with every backend's reason if none can.
        """
        return Attention(spec, self.attention_backend(spec), self.config.cache.block_size)

    def attention_backend(self, spec: AttentionSpec) -> AttentionBackend:
        reasons: list[str] = []
        for backend in self.attention_backends:
            reason = backend.rejects(spec, self.capabilities)
            if reason is None:
                self._log_choice(backend.name, reasons)
                return backend
            reasons.append(f"{backend.name}: {reason}")
        raise ConfigError(
            f"no attention backend of device {self.config.device.device!r} can run this model "
            f"({'; '.join(reasons)}). Choose another --dtype or --device."
        )

    def _log_choice(self, name: str, reasons: list[str]) -> None:
        line = f"attention backend: {name}" + "".join(f"; not {reason}" for reason in reasons)
        if line not in self._logged:
            self._logged.add(line)
            logger.info("%s", line)
