from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from vllm.core.kv_cache.sizing import plan_kv_cache
from vllm.errors import ConfigError
from vllm.messages.cache import AnySpec, FullAttention, KVCacheLayout, SlidingWindow
from vllm.messages.facts import WorkerFacts

MIB = 1 << 20
FULL = FullAttention(block_size=16, num_kv_heads=2, head_dim=32, value_dim=32, dtype_bytes=4)
SLIDING = SlidingWindow(
    block_size=16, num_kv_heads=2, head_dim=32, value_dim=32, dtype_bytes=4, window_tokens=64
)
BLOCK_BYTES = FULL.bytes_per_block()


def make_config(**cache: Any) -> Any:
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
        scheduler=SimpleNamespace(max_num_seqs=4, max_num_batched_tokens=64, pipeline_depth=1),
    )


def facts(
    specs: dict[str, AnySpec] | None = None, free_bytes: int = 64 * MIB, local_size: int = 1
) -> WorkerFacts:
    return WorkerFacts(
        kv_specs={"0": FULL, "1": FULL} if specs is None else specs,
        weight_bytes=4 * MIB,
        activation_bytes=2 * MIB,
        total_bytes=128 * MIB,
        free_bytes=free_bytes,
        load_s=0.0,
        local_size=local_size,
    )


def test_memory_is_used_up_to_its_share_and_no_further_than_requests_can_use() -> None:
    tight = plan_kv_cache(make_config(gpu_memory_utilization=0.5), [facts(free_bytes=10 * MIB)])
    assert tight.num_blocks == 1 * MIB // (2 * BLOCK_BYTES)
    roomy = plan_kv_cache(make_config(), [facts()])
    assert roomy.num_blocks == 1 + 2 * 4 * (256 // 16)


def test_ranks_of_the_cpu_share_its_memory() -> None:
    """28 MiB were free before both loaded 4: a quarter is 7, less weights and a step's."""
    shared = plan_kv_cache(make_config(), [facts(free_bytes=20 * MIB, local_size=2)] * 2)
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


def test_a_model_without_a_cache_has_no_groups_and_no_blocks() -> None:
    """Whatever is asked for: there is nothing that could be too little or too much."""
    for asked in ({}, {"num_blocks_override": 1 << 30}, {"kv_cache_memory_bytes": 1 << 40}):
        assert plan_kv_cache(make_config(**asked), [facts({})]) == KVCacheLayout(0, ())


def stages(*free_bytes: int) -> list[WorkerFacts]:
    """Two stages: one of a full and two sliding layers, one of a full layer."""
    first: dict[str, AnySpec] = {"0": SLIDING, "1": FULL, "2": SLIDING}
    return [
        facts(specs, free) for specs, free in zip((first, {"3": FULL}), free_bytes, strict=True)
    ]


def test_stages_share_groups_and_each_has_memory_for_its_own_layers() -> None:
    layout = plan_kv_cache(make_config(), stages(64 * MIB, 64 * MIB))
    assert [list(group.layers) for group in layout.groups] == [["0", "2"], ["1", "3"]]
    assert layout.bytes_per_block == 2 * BLOCK_BYTES
    first, second = layout.of(["0", "1", "2"]), layout.of(["3"])
    assert [list(group.layers) for group in first.groups] == [["0", "2"], ["1"]]
    assert [list(group.layers) for group in second.groups] == [[], ["3"]]
    assert (first.bytes_per_block, second.bytes_per_block) == (2 * BLOCK_BYTES, BLOCK_BYTES)
    assert first.num_blocks == second.num_blocks == layout.num_blocks


def test_the_stage_with_the_least_memory_for_its_layers_decides() -> None:
    """Of 9, 10 and 11 MiB, 0.5, 1 and 1.5 are left for a cache of 1 or 2 tensors."""
    assert plan_kv_cache(make_config(), stages(10 * MIB, 64 * MIB)).num_blocks == (
        1 * MIB // (2 * BLOCK_BYTES)
    )
    assert plan_kv_cache(make_config(), stages(11 * MIB, 9 * MIB)).num_blocks == (
        MIB // 2 // BLOCK_BYTES
    )
    assert plan_kv_cache(make_config(), stages(10 * MIB, 10 * MIB)).num_blocks == (
        1 * MIB // (2 * BLOCK_BYTES)
    )


def test_a_stage_without_layers_of_its_own_does_not_limit_the_others() -> None:
    poor = facts({}, free_bytes=0)
    assert plan_kv_cache(make_config(), [facts(), poor]) == plan_kv_cache(make_config(), [facts()])


def test_more_than_one_stage_has_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"more than the 0\.01 GiB that are free"):
        plan_kv_cache(make_config(num_blocks_override=1000), stages(64 * MIB, 7 * MIB))
