"""The axes of buckets: which values each has, by strategy, limits and environment."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Final

from vllm.errors import ConfigError
from vllm.logger import init_logger
from vllm.platforms.hpu.bucketing.ranges import (
    exponential_range,
    linear_range,
    padded_range,
)

if TYPE_CHECKING:
    from vllm.envs import Environment

logger = init_logger(__name__)

STRATEGIES: Final = {
    "exp": "exponential",
    "exponential": "exponential",
    "lin": "linear",
    "linear": "linear",
    "pad": "padding-aware",
}
# From here on contexts are so long that they, not prompts, decide how many buckets there are.
_LONG_CONTEXT: Final = 8192


@dataclass(frozen=True, slots=True)
class Limits:
    """What launches can be at most. Lengths in tokens, others as named."""

    max_num_seqs: int
    max_prompt_rows: int
    max_num_batched_tokens: int
    max_model_len: int
    block_size: int
    num_blocks: int  # 0: no cache, so that launches differ in rows and query lengths alone
    contiguous: bool = False

    @property
    def has_cache(self) -> bool:
        return self.num_blocks > 0

    @property
    def blocks_per_row(self) -> int:
        return -(-self.max_model_len // self.block_size)

    @property
    def max_query_len(self) -> int:
        """Of a prompt's padded row: whole blocks."""
        longest = self.blocks_per_row * self.block_size
        return max(1, min(self.max_num_batched_tokens, longest))

    @property
    def max_context_blocks(self) -> int:
        """Of a prompt, which has at least one more token."""
        return -(-(self.max_model_len - 1) // self.block_size) if self.has_cache else 0

    @property
    def max_decode_blocks(self) -> int:
        """Block references of one decode launch; steps that need more are cut in several.

        Blocks shared by requests count for each of them, up to three times what there is. A
        contiguous cache is read up to the highest block in use, wherever that is.
        """
        if self.contiguous or not self.has_cache:
            return self.num_blocks
        wanted = self.blocks_per_row * self.max_num_seqs
        return max(min(wanted, 3 * self.num_blocks), self.blocks_per_row)


@dataclass(frozen=True, slots=True)
class Axis:
    """How the values of one axis are chosen. `count` is for exponential, `pad_*` for `pad`."""

    min: int
    step: int
    max: int
    count: int = 0
    pad_max: int = 0
    pad_percent: int = 25

    def values(self, strategy: str) -> list[int]:
        if strategy == "linear":
            found = linear_range(self.min, self.step, self.max)
        elif strategy == "padding-aware":
            found = padded_range(self.min, self.step, self.max, self.pad_max, self.pad_percent)
        else:
            found = exponential_range(self.min, self.step, self.max, self.count)
        # Demands up to the maximum are legal, whether or not it is a multiple of the step.
        return found if self.max in found else [*found, self.max]

    def shown(self, strategy: str) -> list[int]:
        """What is logged of it: (min, step, max, and what else the strategy takes)."""
        more = {"linear": [], "padding-aware": [self.pad_max, self.pad_percent]}
        return [self.min, self.step, self.max, *more.get(strategy, [self.count])]


_NO_BLOCKS: Final = Axis(0, 1, 0)


@dataclass(frozen=True, slots=True)
class Axes:
    """By default the documented ones; see docs/bucketing.md."""

    prompt_rows: Axis
    prompt_query: Axis
    prompt_context: Axis
    decode_rows: Axis
    decode_blocks: Axis


def default_axes(strategy: str, limits: Limits) -> Axes:
    make: dict[str, Callable[[Limits], Axes]] = {
        "linear": _linear,
        "padding-aware": _padded,
        "exponential": _exponential,
    }
    return make[strategy](limits)


def _linear(limits: Limits) -> Axes:
    size, prompts = limits.block_size, limits.max_prompt_rows
    most = limits.num_blocks
    if not limits.contiguous:
        most = max(-(-limits.max_model_len * limits.max_num_seqs // size), size)
    return Axes(
        prompt_rows=Axis(1, 1, prompts),
        prompt_query=Axis(size, size, limits.max_query_len),
        prompt_context=Axis(0, 1, -(-(limits.max_model_len - size) // size)),
        decode_rows=Axis(1, 32, limits.max_num_seqs),
        decode_blocks=Axis(1, size, most),
    )


def _exponential(limits: Limits) -> Axes:
    size, prompts, rows = limits.block_size, limits.max_prompt_rows, limits.max_num_seqs
    tokens, longest = limits.max_num_batched_tokens, limits.max_model_len
    query = limits.max_query_len
    least = tokens if longest >= _LONG_CONTEXT else size
    context = max(1, (longest - least) // size)
    blocks = min(limits.max_decode_blocks, limits.blocks_per_row * rows)
    count = _log2(blocks) + 1
    if not limits.contiguous and blocks > 3 * limits.num_blocks:
        count += _log2(-(-blocks // (3 * limits.num_blocks))) + 1
    return Axes(
        prompt_rows=Axis(1, 2, prompts, _log2(prompts) + 1),
        prompt_query=Axis(size, size, query, _log2(query)),
        prompt_context=Axis(0, 1, context, 2 if context == 1 else _log2(context) + 1),
        decode_rows=Axis(1, 2, rows, _log2(rows) + 1),
        decode_blocks=Axis(1, min(rows, blocks), blocks, count),
    )


def _padded(limits: Limits) -> Axes:
    size, prompts, rows = limits.block_size, limits.max_prompt_rows, limits.max_num_seqs
    tokens, longest = limits.max_num_batched_tokens, limits.max_model_len
    query = limits.max_query_len
    blocks = limits.num_blocks
    if not limits.contiguous:
        blocks = max(-(-longest * rows // size), size)
    context = -(-(longest - size) // size)
    return Axes(
        prompt_rows=Axis(1, 1, prompts, pad_max=-(-prompts // 4)),
        prompt_query=Axis(size, size, query, pad_max=-(-query // 4)),
        prompt_context=Axis(0, 2, context, pad_max=-(-tokens // size)),
        decode_rows=Axis(1, 2, rows, pad_max=-(-rows // 4)),
        decode_blocks=Axis(min(size, blocks), size, blocks, pad_max=-(-blocks // 4)),
    )


def _log2(value: int) -> int:
    return math.ceil(math.log2(max(1, value)))


# Names in VLLM_<phase>_<axis>_BUCKET_<part>; the second of two is an older one.
AXIS_VARIABLES: Final = {
    "prompt_rows": ("PROMPT_BS",),
    "prompt_query": ("PROMPT_QUERY", "PROMPT_SEQ"),
    "prompt_context": ("PROMPT_CTX",),
    "decode_rows": ("DECODE_BS",),
    "decode_blocks": ("DECODE_BLOCK", "DECODE_CTX"),
}
PARTS: Final = {"MIN": "min", "STEP": "step", "MAX": "max"}
PAD_PARTS: Final = {"PAD_MAX": "pad_max", "PAD_PERCENT": "pad_percent"}


def overridden(axes: Axes, strategy: str, limits: Limits, env: Environment) -> Axes:
    """`axes` with what the environment says. Raises ConfigError for what cannot be."""
    changed: dict[str, Axis] = {}
    for axis_field in fields(axes):
        name = axis_field.name
        if not limits.has_cache and name in ("prompt_context", "decode_blocks"):
            changed[name] = _NO_BLOCKS
            continue
        axis: Axis = getattr(axes, name)
        values = _from_environment(name, env)
        if strategy == "exponential":
            # The maximum bounds what is asked for, not what is chosen; the launch planner obeys it.
            _warn_ignored(name, values)
            values = {}
        changed[name] = _within(name, _checked(name, axis, values), values, limits)
    return Axes(**changed)


def _from_environment(name: str, env: Environment) -> dict[str, int]:
    found: dict[str, int] = {}
    for prefix in AXIS_VARIABLES[name]:
        for part, field_name in {**PARTS, **PAD_PARTS}.items():
            variable = f"VLLM_{prefix}_BUCKET_{part}"
            if field_name not in found and env.is_set(variable):
                found[field_name] = env.value(variable)
    return found


def _warn_ignored(name: str, values: dict[str, int]) -> None:
    ignored = [part for part in values if (name, part) != ("prompt_rows", "max")]
    if ignored:
        logger.warning_once(
            "VLLM_%s_BUCKET_{%s} are ignored: the exponential strategy chooses its own. Set "
            "VLLM_BUCKETING_STRATEGY=lin or pad to use them.",
            AXIS_VARIABLES[name][0],
            ",".join(part.upper() for part in ignored),
        )


def _checked(name: str, axis: Axis, values: dict[str, int]) -> Axis:
    merged = replace(axis, **values)
    variable = f"VLLM_{AXIS_VARIABLES[name][0]}_BUCKET"
    if merged.step < 1:
        raise ConfigError(f"{variable}_STEP={merged.step}: must be at least 1.")
    if merged.pad_percent > 50:
        raise ConfigError(f"{variable}_PAD_PERCENT={merged.pad_percent}: must be 0 to 50.")
    if merged.max < 1 and name != "prompt_context":
        raise ConfigError(f"{variable}_MAX={merged.max}: must be at least 1.")
    if merged.min > merged.max and "min" in values and "max" in values:
        raise ConfigError(f"{variable}_MIN={merged.min} is above {variable}_MAX={merged.max}.")
    return merged


def _within(name: str, axis: Axis, values: dict[str, int], limits: Limits) -> Axis:
    """No value above what a launch can have: it would be prepared for nobody."""
    greatest = {
        "prompt_rows": limits.max_prompt_rows,
        "prompt_query": limits.max_query_len,
        "prompt_context": limits.max_context_blocks,
        "decode_rows": limits.max_num_seqs,
        "decode_blocks": limits.num_blocks
        if limits.contiguous
        else limits.blocks_per_row * limits.max_num_seqs,
    }[name]
    variable = f"VLLM_{AXIS_VARIABLES[name][0]}_BUCKET"
    if axis.max > greatest:
        logger.warning_once(
            "%s_MAX=%d is above what a launch can have and lowered to %d.",
            variable,
            axis.max,
            greatest,
        )
        axis = replace(axis, max=greatest)
    floor = 0 if name == "prompt_context" else 1
    if axis.min <= axis.max:
        return replace(axis, min=max(floor, axis.min))
    least = max(floor, axis.max - axis.step)
    if "min" in values:
        logger.warning_once(
            "%s_MIN=%d is above the maximum, %d, and lowered to %d.",
            variable,
            axis.min,
            axis.max,
            least,
        )
    return replace(axis, min=least)
