"""The methods that work on any device."""

from __future__ import annotations

from functools import partial

from vllm.layers.methods import DeviceMethods
from vllm.layers.plain import Plain, PlainExperts
from vllm.layers.quantization.reference import DequantizedAtUse, ExpertsDequantizedAtUse
from vllm.ops.registry import Ops


def reference_methods(ops: Ops) -> DeviceMethods:
    """Every weight stored row by row, multiplied by torch."""
    return DeviceMethods(
        plain=Plain(),
        plain_experts=PlainExperts(ops.moe),
        quantized=DequantizedAtUse,
        quantized_experts=partial(ExpertsDequantizedAtUse, moe=ops.moe),
    )
