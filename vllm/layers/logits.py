"""From the head's output to logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class LogitsTransform:
    """What a family does to the head's output. `softcap` c > 0 bounds it to c * tanh(x / c)."""

    divisor: float = 1.0
    softcap: float = 0.0

    @property
    def is_nothing(self) -> bool:
        return self.divisor == 1.0 and self.softcap <= 0.0

    def __call__(self, scores: Tensor) -> Tensor:
        """[S, V] float32 -> [S, V] float32."""
        logits = scores
        if self.divisor != 1.0:
            logits = logits / self.divisor
        if self.softcap > 0.0:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits
