"""Helpers of the bridge."""

from __future__ import annotations

from habana_frameworks.torch.utils import debug, experimental, internal

__all__ = ["debug", "experimental", "internal"]
