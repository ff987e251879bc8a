"""Ops of the HPU platform: references replaced by Habana's kernels, where they are installed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from vllm.envs import Environment
from vllm.ops import REFERENCES
from vllm.ops.rotary import norm_then_rotate
from vllm.platforms.hpu.kernels import Kernels, installed
from vllm.platforms.hpu.ops.activation import gelu_and_mul
from vllm.platforms.hpu.ops.moe import FusedMoE, MoESettings, dense_moe, moe_settings
from vllm.platforms.hpu.ops.norm import FusedNorms
from vllm.platforms.hpu.ops.rotary import FusedRotary

__all__ = ["FusedMoE", "FusedNorms", "FusedRotary", "MoESettings", "dense_moe", "hpu_ops"]


def hpu_ops(kernels: Kernels | None = None) -> Mapping[str, Callable[..., Any]]:
    """Overrides of vllm.ops. `kernels`: by default what is installed. Raises ConfigError."""
    kernels = installed() if kernels is None else kernels
    # The reference of moe asks the device how many tokens each expert got.
    ops: dict[str, Callable[..., Any]] = {"gelu_and_mul": gelu_and_mul, "moe": dense_moe}
    if kernels.mixture_of_experts is not None:
        end_graph = kernels.mark_step or (lambda: None)
        ops["moe"] = FusedMoE(kernels.mixture_of_experts, moe_settings(), end_graph)
    if kernels.rms_norm is not None:
        norms = FusedNorms(kernels.rms_norm)
        ops["rms_norm"] = norms.rms_norm
        ops["fused_add_rms_norm"] = norms.fused_add_rms_norm
        ops["gemma_rms_norm"] = norms.gemma_rms_norm
    if kernels.rotary is not None:
        rotary = FusedRotary(kernels.rotary, Environment().VLLM_COS_SIN_RECOMPUTE)
        ops["rope_rows"] = rotary.rope_rows
        ops["rotary"] = rotary.rotary
    if ops.keys() & {"rms_norm", "rotary"}:
        known = {**REFERENCES, **ops}
        ops["normed_rotary"] = norm_then_rotate(known["rms_norm"], known["rotary"])
    return ops
