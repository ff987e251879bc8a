"""Facts about a device."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Capabilities:
    """Facts about a device, asked for instead of its name."""

    dtypes: tuple[torch.dtype, ...]  # preferred first
    default_dtype: torch.dtype  # of a checkpoint that names none it can use
    pinned_memory: bool = False
    static_shapes: bool = False  # launches must be padded to known shapes
    default_block_size: int = 16
    default_depth: int = 1
    default_stage_tokens: int = 64  # of a step below which computing a token costs more
    default_memory_utilization: float = 0.9
