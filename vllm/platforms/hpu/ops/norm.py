"""RMS normalisation through Habana's kernel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class FusedNorms:
    kernel: Callable[[Tensor, Tensor, float], Tensor]

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """As the reference, but rounded once, behind the weight."""
        # Strided input (a part of a fused projection) is not among what the kernel takes.
        return self.kernel(x.contiguous(), weight, eps).to(x.dtype)

    def fused_add_rms_norm(
        self, x: Tensor, residual: Tensor, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        residual = x + residual
        return self.rms_norm(residual, weight, eps), residual

    def gemma_rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        # In float32: beside one, a bfloat16 has lost most of the weight. The kernel's result is
        # float32 too then, as the dtypes of its inputs differ.
        return self.rms_norm(x, weight.float() + 1.0, eps)
