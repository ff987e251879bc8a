from types import SimpleNamespace

import pytest
import torch

from vllm.config.expert_balance import ExpertBalanceConfig
from vllm.device.collectives import Alone
from vllm.layers.context import ModelContext
from vllm.layers.schemes import Scheme
from vllm.loader.build import allocate, choose
from vllm.ops import resolve
from vllm.platforms.cpu import CpuPlatform


class Apart(Alone):
    """One of several ranks that computes its share and is told of no other's."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size


@pytest.fixture
def make_context():
    def make(
        rank: int = 0, size: int = 1, dtype: torch.dtype = torch.float32, placement: str = ""
    ) -> ModelContext:
        """`placement` of whole experts; "": ranks share their width."""
        parallel = {
            "enable_expert_parallel": placement != "",
            "expert_placement_strategy": placement,
        }
        config = SimpleNamespace(
            parallel=SimpleNamespace(**parallel),
            expert_balance=ExpertBalanceConfig(),
            model=SimpleNamespace(max_model_len=64),
            cache=SimpleNamespace(block_size=16, cache_dtype=dtype),
        )
        platform, ops = CpuPlatform(), resolve({})
        return ModelContext(
            config=config,
            device=torch.device("cpu"),
            dtype=dtype,
            ops=ops,
            capabilities=platform.capabilities,
            attention_backends=platform.attention_backends(config),
            tp=Apart(rank, size),
        )

    return make


def allocated(layer):
    """`layer` with memory, in the CPU's methods."""
    platform = CpuPlatform()
    choose(layer, Scheme(platform.weight_methods(resolve({}))))
    allocate(layer, torch.device("cpu"))
    return layer
