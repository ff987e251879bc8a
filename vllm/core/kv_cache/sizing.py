"""From what the ranks measured to how much KV cache there is: once, at start-up."""

from __future__ import annotations

from collections.abc import Sequence

from vllm.config.vllm import VllmConfig
from vllm.core.kv_cache.grouping import group_layers
from vllm.core.kv_cache.rules import rule_of
from vllm.errors import ConfigError
from vllm.logger import init_logger
from vllm.messages.cache import AnySpec, KVCacheLayout, KVGroup
from vllm.messages.facts import WorkerFacts
from vllm.platforms import platform_of

logger = init_logger(__name__)

GIB = 1 << 30
# Cache beyond this many times what all max_num_seqs sequences need at full length would hold only
# prefixes of requests long gone; untouched memory is better left to the operating system.
PREFIX_RESERVE = 2


def blocks_per_sequence(groups: Sequence[KVGroup], num_tokens: int, step_tokens: int) -> int:
    """Blocks that one sequence of `num_tokens` holds at most, over all groups."""
    return sum(
        rule_of(group.needs, i).most_held(group.needs.max_blocks(num_tokens), 0, step_tokens)
        for i, group in enumerate(groups)
    )


def plan_kv_cache(config: VllmConfig, facts: Sequence[WorkerFacts]) -> KVCacheLayout:
    """The layout that the least endowed rank can hold. Raises ConfigError if no sequence fits.

    Each rank allocates the tensors of its own layers (`KVCacheLayout.of`) for all blocks.
    """
    groups = group_layers(_all_layers(facts), config.model.max_model_len)
    if not groups:
        logger.info("KV cache: none, because no layer of the model has one")
        return KVCacheLayout(0, groups)
    step_tokens = config.scheduler.max_num_batched_tokens * config.scheduler.pipeline_depth
    per_sequence = blocks_per_sequence(groups, config.model.max_model_len, step_tokens)
    layout = KVCacheLayout(0, groups)
    shares = [(rank, layout.of(rank.kv_specs).bytes_per_block) for rank in facts]
    shares = [(rank, bytes_per_block) for rank, bytes_per_block in shares if bytes_per_block]
    num_blocks, reason = min(_room(config, rank, share) for rank, share in shares)
    if config.cache.num_blocks_override:
        num_blocks, reason = config.cache.num_blocks_override, "--num-gpu-blocks-override"
    elif not config.cache.kv_cache_memory_bytes:
        enough = 1 + PREFIX_RESERVE * config.scheduler.max_num_seqs * per_sequence
        if num_blocks > enough:
            num_blocks = enough
            reason = f"{PREFIX_RESERVE} x max_num_seqs x max_model_len; memory would allow more"
    bytes_per_block = max(share for _, share in shares)
    if num_blocks - 1 < per_sequence:
        raise _too_small(config, groups, num_blocks, bytes_per_block, step_tokens)
    for rank, share in shares:
        _check_free(config, num_blocks * share, rank.free_bytes, reason)
    _explain(config, groups, num_blocks, bytes_per_block, reason)
    return KVCacheLayout(num_blocks, groups)


def _all_layers(facts: Sequence[WorkerFacts]) -> dict[str, AnySpec]:
    """Layers of all ranks, in the order of the model: ranks are numbered stage after stage."""
    specs: dict[str, AnySpec] = {}
    for rank in facts:
        for name, spec in rank.kv_specs.items():
            assert specs.setdefault(name, spec) == spec, f"ranks differ in {name}: {spec}"
    return specs


def _room(config: VllmConfig, facts: WorkerFacts, bytes_per_block: int) -> tuple[int, str]:
    """Blocks for which a rank has memory, and the reason."""
    budget_bytes, reason = _budget(config, facts)
    return budget_bytes // bytes_per_block, reason


def _budget(config: VllmConfig, facts: WorkerFacts) -> tuple[int, str]:
    if config.cache.kv_cache_memory_bytes:
        return config.cache.kv_cache_memory_bytes, " or ".join(_ways_to_say_bytes(config))
    budget = platform_of(config).kv_cache_budget(config, facts)
    return budget, f"gpu_memory_utilization {config.cache.gpu_memory_utilization:g}"


def _ways_to_say_bytes(config: VllmConfig) -> list[str]:
    """Settings of the size of the cache that count on this device."""
    by_variable = ["VLLM_CPU_KVCACHE_SPACE"] if config.device.device == "cpu" else []
    return [*by_variable, "--kv-cache-memory-bytes"]


def _check_free(config: VllmConfig, wanted_bytes: int, free_bytes: int, reason: str) -> None:
    """Devices that hand out memory on first use would fail only later, amid requests."""
    if wanted_bytes > free_bytes:
        ways = ", ".join(_ways_to_say_bytes(config))
        raise ConfigError(
            f"the KV cache of {wanted_bytes / GIB:.2f} GiB ({reason}) is more than the "
            f"{free_bytes / GIB:.2f} GiB that are free. Ask for less ({ways} or "
            "--num-gpu-blocks-override), or leave them out."
        )


def _too_small(
    config: VllmConfig,
    groups: Sequence[KVGroup],
    num_blocks: int,
    bytes_per_block: int,
    step_tokens: int,
) -> ConfigError:
    """Say how much is missing, and the longest max_model_len that would fit."""
    block_size = groups[0].needs.block_size
    low, high = 0, config.model.max_model_len
    while low < high:
        middle = (low + high + 1) // 2
        if blocks_per_sequence(groups, middle, step_tokens) <= num_blocks - 1:
            low = middle
        else:
            high = middle - 1
    needed = 1 + blocks_per_sequence(groups, config.model.max_model_len, step_tokens)
    ways = ", ".join(_ways_to_say_bytes(config))
    shorter = f", or set --max-model-len to at most {low}" if low >= block_size else ""
    return ConfigError(
        f"the KV cache has room for {num_blocks} blocks "
        f"({num_blocks * bytes_per_block / GIB:.3f} GiB), but one sequence of --max-model-len "
        f"{config.model.max_model_len} needs {needed} "
        f"({needed * bytes_per_block / GIB:.3f} GiB). Give it more memory ({ways}, "
        f"--gpu-memory-utilization or --num-gpu-blocks-override){shorter}."
    )


def _explain(
    config: VllmConfig,
    groups: Sequence[KVGroup],
    num_blocks: int,
    bytes_per_block: int,
    reason: str,
) -> None:
    block_size = groups[0].needs.block_size
    num_tokens = (num_blocks - 1) * block_size // len(groups)
    logger.info(
        "KV cache: %d blocks of %d tokens in %d group(s), %.3f GiB (%s): %d tokens, or %.1f "
        "sequences of %d",
        num_blocks,
        block_size,
        len(groups),
        num_blocks * bytes_per_block / GIB,
        reason,
        num_tokens,
        num_tokens / config.model.max_model_len,
        config.model.max_model_len,
    )
