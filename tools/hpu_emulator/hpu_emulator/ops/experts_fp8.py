"""Mixture of experts with weights and hidden states in fp8; results are bfloat16.

d_scale_* multiply fp8 back to real values: one number, one per row of the hidden states [T, 1], or
one per column of a product. Inner activations are cast with d_scale_intermediate_hidden_states, one
per expert, or, where an overload is "dynamic", with the scale of each row's largest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from hpu_emulator.ops.experts import (
    BIASES,
    CLAMPS,
    FUSED,
    PLACE,
    PLACE_OF_BIASED,
    ROUTING,
    SEPARATE,
    SLICING,
    Call,
    activation_of,
    clamped_gate,
    combine,
    declare,
    like_input_in_bfloat16,
)
from hpu_emulator.ops.fp8 import Scale, check_fp8, encode, fullscale, scale_tensor
from hpu_emulator.ops.fp8_products import fp8_gemm_v2
from torch import Tensor

_OUT: Final = torch.bfloat16


def _product(rows: Tensor, weight: Tensor, row_scale: Scale, weight_scale: Scale) -> Tensor:
    if isinstance(weight_scale, Tensor) and weight_scale.dim() > 1:
        weight_scale = weight_scale.flatten()
    return fp8_gemm_v2(rows, False, weight, False, None, _OUT, row_scale, weight_scale)


def _scale_of_rows(call: Call, tokens: Tensor) -> Scale:
    scale = scale_tensor(call.d_scale_hidden_states, call.hidden_states)
    if scale is None or scale.numel() == 1:
        return scale
    if scale.numel() != call.hidden_states.shape[0]:
        raise RuntimeError(f"d_scale_hidden_states {tuple(scale.shape)}: one, or one per token")
    return scale.reshape(-1, 1)[tokens]


def _halves(scales: Sequence[Scale]) -> list[tuple[Scale, Scale]]:
    """Scales of w12 as those of gate and up."""
    found: list[tuple[Scale, Scale]] = []
    for scale in scales:
        if isinstance(scale, Tensor) and scale.numel() > 1:
            first, second = scale.flatten().chunk(2)
            found.append((first, second))
        else:
            found.append((scale, scale))
    return found


def _down(call: Call, i: int, inner: Tensor, is_dynamic: bool) -> Tensor:
    """inner [rows, F] through fp8 and w3."""
    dtype = call.hidden_states.dtype
    row_scale: Scale
    if is_dynamic:
        largest = inner.float().abs().amax(dim=-1, keepdim=True)
        row_scale = (largest + 1e-8) / fullscale(dtype)
        factor = row_scale.reciprocal()
    else:
        row_scale = scale_tensor(call.d_scale_intermediate_hidden_states[i], inner)
        assert row_scale is not None
        factor = row_scale.reciprocal()
    rows = encode(inner.float() * factor, dtype)
    return _product(rows, call.oriented(call.w3[i]), row_scale, call.d_scale_w3[i])


def _run(call: Call, is_dynamic: bool) -> Tensor:
    x = call.hidden_states
    check_fp8("hidden_states", x.dtype)
    call.check(_OUT)
    act = activation_of(call.activation)
    pairs = call.gates_and_ups()
    scales = (
        _halves(call.d_scale_w12)
        if call.w12
        else list(zip(call.d_scale_w1, call.d_scale_w2, strict=True))
    )

    def expert(i: int, tokens: Tensor) -> Tensor:
        rows, row_scale = x[tokens], _scale_of_rows(call, tokens)
        gate, up = (
            _product(rows, call.oriented(weight), row_scale, scale)
            for weight, scale in zip(pairs[i], scales[i], strict=True)
        )
        return _down(call, i, act(gate) * up, is_dynamic)

    return combine(call, _OUT, expert)


def _run_biased(call: Call) -> Tensor:
    x = call.hidden_states
    check_fp8("hidden_states", x.dtype)
    call.check(_OUT)

    def expert(i: int, tokens: Tensor) -> Tensor:
        weight = call.oriented(call.w12[i])
        both = _product(x[tokens], weight, _scale_of_rows(call, tokens), call.d_scale_w12[i])
        inner = clamped_gate(both + call.w12_bias[i], call.alpha, call.limit)
        return _down(call, i, inner, is_dynamic=False) + call.w3_bias[i]

    return combine(call, _OUT, expert)


def _static(call: Call) -> Tensor:
    return _run(call, is_dynamic=False)


def _dynamic(call: Call) -> Tensor:
    return _run(call, is_dynamic=True)


def _scales(weights: Sequence[str], is_scalar: bool, is_dynamic: bool) -> list[str]:
    one, many = ("float", "float[]") if is_scalar else ("Tensor", "Tensor[]")
    found = [f"{one} d_scale_hidden_states"]
    if not is_dynamic:
        found.append(f"{many} d_scale_intermediate_hidden_states")
    return found + [f"{many} d_scale_{argument.split()[-1]}" for argument in weights]


for _name, _weights in (("fp8", SEPARATE), ("fp8_fused_weights", FUSED)):
    for _scalars in ("", "_scalars"):
        for _ending, _compute in (("", _static), ("_dynamic", _dynamic)):
            _given = _scales(_weights, bool(_scalars), bool(_ending))
            declare(
                f"{_name}{_scalars}{_ending}",
                (*ROUTING, *_weights, *_given, *PLACE, *SLICING),
                _compute,
                like_input_in_bfloat16,
            )
for _scalars in ("", "_scalars"):
    declare(
        f"bias_fp8_fused_weights{_scalars}",
        (*ROUTING, *FUSED, *BIASES, *_scales(FUSED, bool(_scalars), False), *PLACE_OF_BIASED,
         *SLICING, *CLAMPS),
        _run_biased,
        like_input_in_bfloat16,
    )  # fmt: skip
