"""Inverse frequencies of every rope scaling type, [R/2] float32, and the factor on cos and sin.

The order of operations follows the definitions the checkpoints were trained with, as float32
rounding of a frequency is multiplied by the position.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from vllm.errors import ConfigError
from vllm.layers.rope.parameters import RopeParameters

Frequencies = tuple[Tensor, float]


def _exponents(dim: int) -> Tensor:
    return torch.arange(0, dim, 2, dtype=torch.int64).float() / dim


def plain(theta: float, dim: int) -> Tensor:
    """The unscaled inverse frequencies."""
    return 1.0 / (theta ** _exponents(dim))


def dynamic(p: RopeParameters, length: Tensor) -> Tensor:
    """NTK-scaled frequencies [..., R/2] of contexts of `length` [..., 1] tokens, in float64."""
    factor, dim = p.number("factor"), p.rotary_dim
    length = length.double().clamp(min=p.max_positions)
    stretch = (factor * length / p.max_positions) - (factor - 1)
    base = p.theta * stretch ** (dim / (dim - 2))
    return 1.0 / (base ** _exponents(dim).double())


def mscale(factor: float, weight: float = 1.0) -> float:
    """YaRN's growth of attention temperature with the extension factor."""
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


def _linear(p: RopeParameters, max_model_len: int) -> Frequencies:
    return plain(p.theta, p.rotary_dim) / p.number("factor"), 1.0


def _default(p: RopeParameters, max_model_len: int) -> Frequencies:
    return plain(p.theta, p.rotary_dim), 1.0


def _llama3(p: RopeParameters, max_model_len: int) -> Frequencies:
    inverse = plain(p.theta, p.rotary_dim)
    factor, original = p.number("factor"), p.original_positions
    low, high = p.number("low_freq_factor"), p.number("high_freq_factor")
    wavelength = 2 * math.pi / inverse
    blend = (original / wavelength - low) / (high - low)
    blended = (1 - blend) * inverse / factor + blend * inverse
    scaled = torch.where(wavelength > original / low, inverse / factor, blended)
    return torch.where(wavelength < original / high, inverse, scaled), 1.0


def _yarn(p: RopeParameters, max_model_len: int) -> Frequencies:
    dim, original = p.rotary_dim, p.original_positions
    factor = p.number("factor", p.max_positions / original)

    def dimension_of(rotations: float) -> float:
        """Where a dimension makes `rotations` turns over the original context."""
        return dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(p.theta))

    low, high = dimension_of(p.number("beta_fast", 32.0)), dimension_of(p.number("beta_slow", 1.0))
    if p.scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001  # the ramp is a step then
    ramp = ((torch.arange(dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    kept = 1 - ramp
    spacing = p.theta ** _exponents(dim)
    inverse = (1.0 / (factor * spacing)) * (1 - kept) + (1.0 / spacing) * kept
    return inverse, _yarn_attention_factor(p, factor)


def _yarn_attention_factor(p: RopeParameters, factor: float) -> float:
    stated = p.scaling.get("attention_factor")
    if stated is not None:
        return float(stated)
    weight, weight_all = p.scaling.get("mscale"), p.scaling.get("mscale_all_dim")
    if weight and weight_all:
        return mscale(factor, float(weight)) / mscale(factor, float(weight_all))
    return mscale(factor)


def _longrope(p: RopeParameters, max_model_len: int) -> Frequencies:
    """One of the two factor sets for all requests, chosen by the context length served.

    A cache that held keys of both could not be compared with any query, and a request does not say
    beforehand how long it will become.
    """
    original = p.original_positions
    name = "long_factor" if max_model_len > original else "short_factor"
    factors = p.scaling.get(name)
    if factors is None or len(factors) != p.rotary_dim // 2:
        raise ConfigError(
            f"rope type 'longrope' needs {p.rotary_dim // 2} numbers in {name!r} of the model "
            "config's rope_parameters. Correct config.json or set it with --hf-overrides."
        )
    factor = p.number("factor", p.max_positions / original)
    default = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    scale = p.number("attention_factor", default)
    stretch = torch.tensor(factors, dtype=torch.float32)
    return 1.0 / (stretch * p.theta ** _exponents(p.rotary_dim)), scale


_KINDS: dict[str, Callable[[RopeParameters, int], Frequencies]] = {
    "default": _default,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}


def frequencies(p: RopeParameters, max_model_len: int) -> Frequencies:
    """Frequencies of every type that does not depend on the position."""
    if p.kind not in _KINDS:
        known = ", ".join([*_KINDS, "dynamic"])
        raise ConfigError(
            f"the model config asks for rope type {p.kind!r}; known here: {known}. "
            "Try --model-impl transformers."
        )
    return _KINDS[p.kind](p, max_model_len)
