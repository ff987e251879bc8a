"""From configuration and environment to the buckets of an engine."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vllm.logger import init_logger
from vllm.platforms.hpu.bucketing.axes import (
    STRATEGIES,
    Axes,
    Limits,
    default_axes,
    overridden,
)
from vllm.platforms.hpu.bucketing.demand import Demand, RecordedDemand
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

_MOST_LOGGED: Final = 1000  # buckets in a line


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
        contiguous=num_blocks > 0 and env.value("VLLM_CONTIGUOUS_PA"),
    )
    # Activations are measured with a cache of one block and buckets that nobody prepares.
    level = logging.DEBUG if num_blocks == 1 else logging.INFO
    strategy = chosen_strategy(env)
    if path := env.value("VLLM_BUCKETING_FROM_FILE"):
        prompt, decode = read_buckets(Path(path), limits)
    else:
        axes = overridden(default_axes(strategy, limits), strategy, limits, env)
        _log_axes(axes, strategy, level)
        prompt = prompt_buckets(axes, strategy, limits)
        decode = decode_buckets(axes, strategy, limits)
    table = BucketTable(prompt, decode, limits)
    _log_buckets("prompt", table.prompt, level)
    _log_buckets("decode", table.decode, level)
    return table


def make_demand(table: BucketTable, env: Environment) -> Demand:
    """Raises ConfigError if it is to be recorded in a file that cannot be written."""
    path = env.value("VLLM_BUCKETING_TO_FILE")
    is_served = table.limits.num_blocks != 1  # see make_table
    return RecordedDemand(Path(path), table) if path and is_served else Demand()


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


def _log_axes(axes: Axes, strategy: str, level: int) -> None:
    shown = {f.name: getattr(axes, f.name).shown(strategy) for f in fields(axes)}
    names = {"linear": "", "exponential": ", count", "padding-aware": ", pad_max, pad_percent"}
    logger.log(
        level,
        "Prompt bucket config (min, step, max_warmup%s) bs:%s, query:%s, blocks:%s",
        names[strategy],
        shown["prompt_rows"],
        shown["prompt_query"],
        shown["prompt_context"],
    )
    logger.log(
        level,
        "Decode bucket config (min, step, max_warmup%s) bs:%s, blocks:%s",
        names[strategy],
        shown["decode_rows"],
        shown["decode_blocks"],
    )


def _log_buckets(phase: str, buckets: Sequence[Bucket], level: int) -> None:
    logger.log(
        level,
        "Generated %d %s buckets [bs, query, num_blocks]: %s%s",
        len(buckets),
        phase,
        [tuple(bucket) for bucket in buckets[:_MOST_LOGGED]],
        f" and {len(buckets) - _MOST_LOGGED} more" if len(buckets) > _MOST_LOGGED else "",
    )
