"""Switches of the bridge. They steer its compiler, which the emulator has none of: it keeps them
so that they read back, and computes the same whatever they say."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_state = {
    "dynamic_shape": False,
    "inference_mode": False,
    "quantization": False,
    "matmul3d_2d_reshape": False,
    "optim_output_sif": False,
    "recompute_sdp": True,
}


def enable_dynamic_shape() -> None:
    _state["dynamic_shape"] = True


def disable_dynamic_shape() -> None:
    _state["dynamic_shape"] = False


def get_dynamic_shape_status() -> bool:
    return _state["dynamic_shape"]


def enable_inference_mode() -> None:
    _state["inference_mode"] = True


def disable_inference_mode() -> None:
    _state["inference_mode"] = False


def enable_quantization() -> None:
    _state["quantization"] = True


def disable_quantization() -> None:
    _state["quantization"] = False


def enable_matmul3d_2d_reshape() -> None:
    _state["matmul3d_2d_reshape"] = True


def disable_matmul3d_2d_reshape() -> None:
    _state["matmul3d_2d_reshape"] = False


def enable_optim_output_sif() -> None:
    _state["optim_output_sif"] = True


def disable_optim_output_sif() -> None:
    _state["optim_output_sif"] = False


def enable_recompute_sdp(enabled: bool = True) -> None:
    _state["recompute_sdp"] = enabled


def disable_recompute_sdp() -> None:
    _state["recompute_sdp"] = False


def recompute_sdp_enabled() -> bool:
    return _state["recompute_sdp"]


@contextmanager
def sdp_kernel(enable_recompute: bool = True) -> Iterator[None]:
    before = _state["recompute_sdp"]
    _state["recompute_sdp"] = enable_recompute
    try:
        yield
    finally:
        _state["recompute_sdp"] = before


def enable_const_section_serialization(
    path: str, clear_path: bool = False, use_compression: bool = False
) -> None:
    raise NotImplementedError("the constant sections of recipes are not emulated")


def setDeterministic(val: bool) -> None:
    warnings.warn(
        "setDeterministic is deprecated: use torch.use_deterministic_algorithms",
        DeprecationWarning,
        stacklevel=2,
    )
    torch.use_deterministic_algorithms(val)


def set_autocast_hpu_enabled(enabled: bool) -> None:
    torch.set_autocast_enabled("hpu", enabled)


def is_autocast_hpu_enabled() -> bool:
    return torch.is_autocast_enabled("hpu")


def set_autocast_hpu_dtype(dtype: torch.dtype) -> None:
    torch.set_autocast_dtype("hpu", dtype)


def get_autocast_hpu_dtype() -> torch.dtype:
    return torch.get_autocast_dtype("hpu")
