from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from vllm.core.kv_cache.sizing import group_layers, plan_kv_cache
from vllm.errors import ConfigError
from vllm.messages.cache import AnySpec, FullAttention, SlidingWindow
from vllm.messages.facts import WorkerFacts

MIB = 1 << 20
FULL = FullAttention(block_size=16, num_kv_heads=2, head_dim=32, value_dim=32, dtype_bytes=4)
SLIDING = SlidingWindow(
    block_size=16, num_kv_heads=2, head_dim=32, value_dim=32, dtype_bytes=4, window_tokens=64
)
BLOCK_BYTES = FULL.bytes_per_block()


def make_config(num_ranks: int = 1, **cache: Any) -> Any:
    """Only what sizing reads of a VllmConfig."""
    defaults = {
        "gpu_memory_utilization": 0.5,
        "kv_cache_memory_bytes": 0,
        "num_blocks_override": 0,
    }
    return SimpleNamespace(
        cache=SimpleNamespace(**{**defaults, **cache}),
        model=SimpleNamespace(max_model_len=256),
        device=SimpleNamespace(device="cpu"),
        parallel=SimpleNamespace(world_size=num_ranks),
        scheduler=SimpleNamespace(max_num_seqs=4, max_num_batched_tokens=64, pipeline_depth=1),
    )


def facts(specs: dict[str, AnySpec] | None = None, free_bytes: int = 64 * MIB) -> WorkerFacts:
    return WorkerFacts(
        kv_specs=specs or {"0": FULL, "1": FULL},
        weight_bytes=4 * MIB,
        activation_bytes=2 * MIB,
        total_bytes=128 * MIB,
        free_bytes=free_bytes,
        load_s=0.0,
    )


def test_layers_are_cut_into_groups_of_the_smallest_kind() -> None:
    specs: dict[str, AnySpec] = {str(i): SLIDING if i % 3 else FULL for i in range(6)}
    groups = group_layers(specs)
    assert [(g.spec, g.layers) for g in groups] == [
        (FULL, ("0", "3")),
        (SLIDING, ("1", "2")),
        (SLIDING, ("4", "5")),
    ]


def test_memory_is_used_up_to_its_share_and_no_further_than_requests_can_use() -> None:
    tight = plan_kv_cache(make_config(gpu_memory_utilization=0.5), [facts(free_bytes=10 * MIB)])
    assert tight.num_blocks == 1 * MIB // (2 * BLOCK_BYTES)
    roomy = plan_kv_cache(make_config(), [facts()])
    assert roomy.num_blocks == 1 + 2 * 4 * (256 // 16)


def test_ranks_of_the_cpu_share_its_memory() -> None:
    """28 MiB were free before both loaded 4: a quarter is 7, less weights and a step's."""
    shared = plan_kv_cache(make_config(2), [facts(free_bytes=20 * MIB)] * 2)
    assert shared.num_blocks == 1 * MIB // (2 * BLOCK_BYTES)


def test_the_least_endowed_rank_decides() -> None:
    poor = facts(free_bytes=16 * MIB)
    assert plan_kv_cache(make_config(), [facts(), poor]) == plan_kv_cache(make_config(), [poor])


def test_too_little_memory_names_the_length_that_would_fit() -> None:
    with pytest.raises(ConfigError, match=r"--max-model-len to at most 112\b"):
        plan_kv_cache(make_config(num_blocks_override=8), [facts()])


@pytest.mark.parametrize(
    "asked", [{"kv_cache_memory_bytes": 65 * MIB}, {"num_blocks_override": 1 << 20}]
)
def test_more_cache_than_memory_is_refused_at_start_up(asked: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=r"more than the 0\.06 GiB that are free"):
        plan_kv_cache(make_config(**asked), [facts()])
