"""From configuration and environment to the buckets of an engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from vllm.logger import init_logger
from vllm.platforms.hpu.bucketing.axes import (
    STRATEGIES,
    Axes,
    Limits,
    default_axes,
    overridden,
)
from vllm.platforms.hpu.bucketing.file import read_buckets
from vllm.platforms.hpu.bucketing.table import (
    Bucket,
    BucketTable,
    decode_buckets,
    prompt_buckets,
)

if TYPE_CHECKING:
    from vllm.config.vllm import VllmConfig
    from vllm.envs import Environment

logger = init_logger(__name__)


def make_table(config: VllmConfig, num_blocks: int, env: Environment) -> BucketTable:
    """Raises ConfigError for settings that leave no bucket."""
    limits = Limits(
        max_num_seqs=config.scheduler.max_num_seqs,
        max_prompt_rows=min(
            env.value("VLLM_PROMPT_BS_BUCKET_MAX") or 1, config.scheduler.max_num_seqs
        ),
        max_num_batched_tokens=config.scheduler.max_num_batched_tokens,
        max_model_len=config.model.max_model_len,
        block_size=config.cache.block_size,
        num_blocks=num_blocks,
        contiguous=env.value("VLLM_CONTIGUOUS_PA"),
    )
    strategy = chosen_strategy(env)
    if path := env.value("VLLM_BUCKETING_FROM_FILE"):
        prompt, decode = read_buckets(Path(path), limits)
    else:
        axes = overridden(default_axes(strategy, limits), strategy, limits, env)
        _log_axes(axes, strategy)
        prompt = prompt_buckets(axes, strategy, limits)
        decode = decode_buckets(axes, strategy, limits)
    table = BucketTable(prompt, decode, limits)
    _log_buckets("prompt", table.prompt)
    _log_buckets("decode", table.decode)
    return table


def chosen_strategy(env: Environment) -> str:
    """Its full name. The older boolean variable wins over the newer one, with a warning."""
    older = env.value("VLLM_EXPONENTIAL_BUCKETING")
    if older is None:
        return STRATEGIES[env.value("VLLM_BUCKETING_STRATEGY")]
    logger.warning_once(
        "VLLM_EXPONENTIAL_BUCKETING is deprecated: use VLLM_BUCKETING_STRATEGY=%s.",
        "exp" if older else "lin",
    )
    return "exponential" if older else "linear"


def _log_axes(axes: Axes, strategy: str) -> None:
    shown = {f.name: getattr(axes, f.name).shown(strategy) for f in fields(axes)}
    names = {"linear": "", "exponential": ", count", "padding-aware": ", pad_max, pad_percent"}
    logger.info(
        "Prompt bucket config (min, step, max_warmup%s) bs:%s, query:%s, blocks:%s",
        names[strategy],
        shown["prompt_rows"],
        shown["prompt_query"],
        shown["prompt_context"],
    )
    logger.info(
        "Decode bucket config (min, step, max_warmup%s) bs:%s, blocks:%s",
        names[strategy],
        shown["decode_rows"],
        shown["decode_blocks"],
    )


def _log_buckets(phase: str, buckets: Sequence[Bucket]) -> None:
    logger.info(
        "Generated %d %s buckets [bs, query, num_blocks]: %s",
        len(buckets),
        phase,
        [tuple(bucket) for bucket in buckets],
    )
