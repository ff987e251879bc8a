"""The KV cache: block size, how much memory, what is shared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vllm.config.kinds import FLOAT, INT, TEXT_OR_OBJECT
from vllm.config.option import option

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheConfig:
    block_size: int = option(
        None,
        kind=INT,
        choices=(16, 32, 64, 128, 256),
        auto="the device",
        help="Tokens per block of KV cache.",
    )
    gpu_memory_utilization: float = option(
        None,
        kind=FLOAT,
        low=0.01,
        high=1,
        auto="the device",
        help="Share of the free memory of the device (0.9 unless set) or, on the CPU, of the "
        "machine (0.5 unless set) to use for weights, activations and KV cache.",
    )
    kv_cache_memory_bytes: int = option(
        0,
        low=0,
        help='Memory for the KV cache, such as "4G"; 0: what --gpu-memory-utilization leaves.',
    )
    num_blocks_override: int = option(
        0,
        low=0,
        flag="--num-gpu-blocks-override",
        help="Number of KV cache blocks, whatever the memory; 0: from the memory.",
    )
    enable_prefix_caching: bool = option(
        True, help="Reuse the KV cache of prompt beginnings that were computed before."
    )
    cache_dtype: torch.dtype = option(
        "auto",
        kind=TEXT_OR_OBJECT,
        flag="--kv-cache-dtype",
        auto="the model's dtype",
        help="Type of keys and values in the cache: so far the model's, by whichever name.",
    )
