"""The 8-bit floating-point numbers of the emulated generation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from hpu_emulator.runtime import SETTINGS
from torch import Tensor

E4M3: Final = torch.float8_e4m3fn
E5M2: Final = torch.float8_e5m2
FP8: Final = (E4M3, E5M2)
# Exponent of the smallest normal number, bits of the mantissa.
_LAYOUT: Final = {E4M3: (-6, 3), E5M2: (-14, 2)}

Scale = Tensor | float | Sequence[float] | None


def fullscale(dtype: torch.dtype) -> float:
    """The largest finite number."""
    return SETTINGS.generation.fp8_max if dtype == E4M3 else 57344.0


def check_fp8(name: str, dtype: torch.dtype) -> None:
    if dtype not in FP8:
        raise RuntimeError(f"{name} is {dtype}: float8_e4m3fn or float8_e5m2 is needed")


def encode(values: Tensor, dtype: torch.dtype, is_stochastic: bool = False) -> Tensor:
    """Rounds to the nearest, ties to even, or up and down by chance; saturates; NaN stays NaN."""
    check_fp8("the result", dtype)
    limit = fullscale(dtype)
    wide = values.float().clamp(-limit, limit)
    if is_stochastic:
        smallest, mantissa = _LAYOUT[dtype]
        _, exponent = torch.frexp(wide)
        step = torch.ldexp(torch.ones_like(wide), (exponent - 1).clamp(min=smallest) - mantissa)
        wide = (torch.floor(wide / step + torch.rand_like(wide)) * step).clamp(-limit, limit)
    return wide.to(dtype)


def decode(codes: Tensor) -> Tensor:
    """float32. Codes that the generation has no finite number for are infinite or NaN."""
    wide = codes.float()
    if codes.dtype != E4M3 or fullscale(E4M3) == torch.finfo(E4M3).max:
        return wide
    # The top exponent is reserved, as IEEE has it: no fraction is infinity, any other NaN.
    is_infinite = wide.abs() == 256.0
    wide = torch.where(is_infinite, torch.copysign(torch.full_like(wide, torch.inf), wide), wide)
    return wide.masked_fill((wide.abs() > 256.0) & ~is_infinite, torch.nan)


def widen(tensor: Tensor) -> Tensor:
    """float32 of fp8 or of any other floating-point tensor."""
    return decode(tensor) if tensor.dtype in FP8 else tensor.float()


def scale_tensor(scale: Scale, like: Tensor, shape: Sequence[int] | None = None) -> Tensor | None:
    """A scale as float32 next to `like`, which a lone host scalar need not be; None stays None."""
    if scale is None:
        return None
    if not isinstance(scale, Tensor):
        scale = torch.tensor(scale, dtype=torch.float32, device=like.device)
    wide = scale.float()
    if wide.dim() == 0:
        wide = wide.to(like.device)
    return wide if shape is None else wide.reshape(list(shape))


def apply_scale(values: Tensor, scale: Tensor | None) -> Tensor:
    """values * scale, which may not widen the values."""
    if scale is None:
        return values
    if scale.numel() == 1:
        return values * scale.reshape(())
    scaled = values * scale
    if scaled.shape != values.shape:
        raise RuntimeError(f"scale {tuple(scale.shape)} does not fit {tuple(values.shape)}")
    return scaled
