"""Steps of lazy mode and the switches of inference."""

from __future__ import annotations

from habana_frameworks.torch import hpu
from habana_frameworks.torch.core.inference import (
    hpu_inference_initialize,
    hpu_inference_set_env,
    hpu_initialize,
    hpu_reset_env,
    hpu_set_env,
    hpu_set_inference_env,
    hpu_teardown_inference_env,
)
from habana_frameworks.torch.core.step import add_step_closure, iter_mark_step, mark_step

__all__ = [
    "add_step_closure",
    "hpu",
    "hpu_inference_initialize",
    "hpu_inference_set_env",
    "hpu_initialize",
    "hpu_reset_env",
    "hpu_set_env",
    "hpu_set_inference_env",
    "hpu_teardown_inference_env",
    "iter_mark_step",
    "mark_step",
]

_ABSENT = ("quantize_pt2e", "quantizer", "observer")


def __getattr__(name: str) -> object:
    if name in _ABSENT:
        raise ImportError(f"habana_frameworks.torch.core.{name} is not emulated")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
