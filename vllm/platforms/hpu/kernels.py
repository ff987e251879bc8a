"""Habana's fused kernels: which of them the installed software has, looked up once."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from vllm.logger import init_logger
from vllm.platforms.hpu import bridge

logger = init_logger(__name__)

HPEX = "habana_frameworks.torch.hpex"


@dataclass(frozen=True, slots=True)
class Kernels:
    """None: not installed, and what uses it computes op by op instead."""

    fused_sdpa: Callable[..., Any] | None = None
    sdpa_forward: Callable[..., Any] | None = None
    rms_norm: Callable[..., Any] | None = None
    rotary: Callable[..., Any] | None = None
    mixture_of_experts: Callable[..., Any] | None = None
    block_softmax: Callable[..., Any] | None = None
    block_softmax_adjustment: Callable[..., Any] | None = None
    block_softmax_const_max: Callable[..., Any] | None = None
    mark_step: Callable[[], Any] | None = None


@cache
def installed() -> Kernels:
    """Warns of kernels that every model would use and that are missing."""
    found = Kernels(
        fused_sdpa=_apply(f"{HPEX}.kernels", "FusedSDPA"),
        sdpa_forward=_op("sdpa_recomp_fwd"),
        rms_norm=_apply(f"{HPEX}.normalization", "FusedRMSNorm"),
        rotary=_op("rotary_pos_embedding"),
        mixture_of_experts=_op("mixture_of_experts"),
        block_softmax=_op("block_softmax"),
        block_softmax_adjustment=_op("block_softmax_adjustment"),
        block_softmax_const_max=_op("block_softmax_const_max"),
        mark_step=bridge.module("core").mark_step if bridge.is_lazy() else None,
    )
    usual = {
        "FusedSDPA": found.fused_sdpa,
        "FusedRMSNorm": found.rms_norm,
        "rotary_pos_embedding": found.rotary,
        "mixture_of_experts": found.mixture_of_experts,
    }
    missing = [name for name, kernel in usual.items() if kernel is None]
    if missing:
        logger.warning(
            "Habana kernels not found: %s. The slower composition of single ops runs instead; "
            "install the habana-torch-plugin of your driver's release.",
            ", ".join(missing),
        )
    return found


def _apply(module: str, name: str) -> Callable[..., Any] | None:
    """The entry of a kernel that is published as an autograd function."""
    function = _attribute(module, name)
    return None if function is None else function.apply


def _attribute(module: str, name: str) -> Any | None:
    try:
        return importlib.import_module(module).__dict__.get(name)
    except ImportError as error:
        logger.debug("%s is not available: %s", module, error)
        return None


def _op(name: str) -> Callable[..., Any] | None:
    """A packet of torch.ops.hpu: registered by importing the bridge."""
    if _attribute("habana_frameworks.torch", "core") is None:
        return None
    if not torch._C._jit_get_schemas_for_operator(f"hpu::{name}"):
        return None
    packet: Callable[..., Any] = getattr(torch.ops.hpu, name)
    return packet
