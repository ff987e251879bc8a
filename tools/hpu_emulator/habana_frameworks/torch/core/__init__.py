"""Steps of lazy mode and the inference switches."""

from __future__ import annotations

from habana_frameworks.torch.core.step import mark_step

__all__ = ["mark_step"]
