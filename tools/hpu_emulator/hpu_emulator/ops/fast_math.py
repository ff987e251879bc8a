"""Functions that the hardware approximates in bfloat16; here they are exact and then rounded."""

from __future__ import annotations

from collections.abc import Callable

import torch
from hpu_emulator.ops.library import kernel
from torch import Tensor


def _declare(name: str, exact: Callable[[Tensor], Tensor]) -> None:
    def compute(tensor: Tensor) -> Tensor:
        if tensor.dtype != torch.bfloat16:
            raise RuntimeError(f"{name}_fast_math is for bfloat16, not for {tensor.dtype}")
        return exact(tensor.float()).to(tensor.dtype)

    kernel(f"{name}_fast_math(Tensor self) -> Tensor")(compute)


_declare("exp", torch.exp)
_declare("sqrt", torch.sqrt)
_declare("rsqrt", torch.rsqrt)
_declare("reciprocal", torch.reciprocal)
