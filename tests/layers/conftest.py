from functools import partial
from types import SimpleNamespace

import pytest
import torch

from vllm.layers.context import ModelContext
from vllm.layers.linear import ShardInfo
from vllm.ops import resolve
from vllm.platforms.cpu import CpuPlatform


@pytest.fixture
def make_context():
    def make(rank: int = 0, size: int = 1, dtype: torch.dtype = torch.float32) -> ModelContext:
        config = SimpleNamespace(
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
            new_linear_method=platform.linear_method,
            new_experts_method=partial(platform.experts_method, ops),
            attention_backends=platform.attention_backends(),
            shard=ShardInfo(rank, size),
        )

    return make
