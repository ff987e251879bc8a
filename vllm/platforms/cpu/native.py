"""The C++ kernels, if they were built: loading them and choosing their instruction set."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

from vllm import envs
from vllm.device.attention import AttentionSpec, PagedMeta
from vllm.errors import ConfigError
from vllm.logger import init_logger
from vllm.ops.moe import Routing
from vllm.ops.sampling import DrawTables

logger = init_logger(__name__)

# Ops whose native form takes the reference's arguments as they are.
_PLAIN = (
    "rms_norm",
    "fused_add_rms_norm",
    "gemma_rms_norm",
    "silu_and_mul",
    "gelu_tanh_and_mul",
    "rotary",
    "normed_rotary",
    "write_kv",
    "write_latent",
    "greatest",
    "gather_logprobs",
    "apply_token_bitmask",
)
_WRAPPED = ("paged_attention", "mla_attention", "choose_experts", "choose")
# Called by name, by what holds packed weights.
_PACKED = (
    *("pack_weight", "empty_packed", "pack_rows", "packed_rows"),
    *("packed_linear", "packed_greatest", "packed_gated", "packed_moe"),
)


@cache
def is_available() -> bool:
    """Whether native ops can be called. The first call loads them, or warns that there are none."""
    try:
        importlib.import_module("vllm._C")
    except ImportError as error:
        logger.warning(
            "native CPU kernels are not available (%s): running on the slower torch reference. "
            "Build them with: python csrc/build.py --inplace",
            error,
        )
        return False
    missing = [name for name in (*_PLAIN, *_WRAPPED, *_PACKED) if not _is_registered(name)]
    if missing:
        logger.warning(
            "native CPU kernels are older than this source (no %s): running on the slower "
            "torch reference. Build them again with: python csrc/build.py --inplace",
            ", ".join(missing),
        )
        return False
    logger.info("CPU kernels: %s", select_isa(envs.VLLM_CPU_ISA))
    return True


def _is_registered(name: str) -> bool:
    return any(torch._C._jit_get_schemas_for_operator(f"vllm::{name}"))


def select_isa(name: str) -> str:
    """Use the named instruction set (`auto`: the best) from now on, in this process. -> its name.

    Raises ConfigError if this machine cannot run it.
    """
    available: list[str] = torch.ops.vllm.available_isas()
    if name not in ("auto", *available):
        raise ConfigError(
            f"VLLM_CPU_ISA={name}: not available on this machine; use auto or one of "
            f"{', '.join(available)}"
        )
    chosen: str = torch.ops.vllm.select_isa(name)
    return chosen


def paged_attention(q: Tensor, cache: Tensor, meta: PagedMeta, spec: AttentionSpec) -> Tensor:
    """As the reference of this name."""
    out: Tensor = torch.ops.vllm.paged_attention.default(
        q,
        cache,
        meta.query_start,
        meta.seq_lens,
        meta.block_table,
        spec.value_dim or spec.head_dim,
        spec.scale,
        spec.window or 0,
        spec.softcap,
    )
    return out


def mla_attention(q: Tensor, cache: Tensor, meta: PagedMeta, spec: AttentionSpec) -> Tensor:
    """As the reference of this name."""
    out: Tensor = torch.ops.vllm.mla_attention.default(
        q,
        cache,
        meta.query_start,
        meta.seq_lens,
        meta.block_table,
        spec.latent_dim,
        spec.scale,
        spec.window or 0,
        spec.softcap,
    )
    return out


def choose_experts(
    logits: Tensor, correction: Tensor | None, routing: Routing
) -> tuple[Tensor, Tensor]:
    """As the reference of this name; of equally good experts it chooses the first."""
    chosen: tuple[Tensor, Tensor] = torch.ops.vllm.choose_experts.default(
        logits,
        correction,
        routing.top_k,
        routing.score,
        routing.renormalise,
        routing.groups,
        routing.top_groups,
        routing.scale,
    )
    return chosen


def choose(
    logits: Tensor, draws: Tensor, slots: Tensor, positions: Tensor, tables: DrawTables
) -> Tensor:
    """As the reference of this name."""
    out: Tensor = torch.ops.vllm.choose.default(logits, draws, slots, positions, *tables)
    return out


@cache
def native_ops() -> Mapping[str, Callable[..., Any]]:
    """Overrides of reference ops; empty if the kernels are not there."""
    if not is_available():
        return {}
    # The overload, not the packet: it skips a search by argument types in every call.
    plain = {name: getattr(torch.ops.vllm, name).default for name in _PLAIN}
    return {
        **plain,
        "paged_attention": paged_attention,
        "mla_attention": mla_attention,
        "choose_experts": choose_experts,
        "choose": choose,
    }
