"""What attention on HPU can be asked to do differently."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class SliceSettings:
    """Cutting a long prefill behind a prefix into kernel calls of `chunk_tokens` squared."""

    min_tokens: int  # of context and queries together; shorter ones run in one call
    chunk_tokens: int
    graph_breaks: bool  # end the lazy graph after each piece


@dataclass(frozen=True, slots=True)
class AttentionSettings:
    """Resolved once; the platform makes it from the environment and the model."""

    dtype: torch.dtype = torch.bfloat16  # of the model
    fp32_softmax: bool = False
    contiguous: bool = False
    prompt: str = "fused"  # or "naive", or "flex"
    fused_block_softmax: bool = False
    fused_block_adjustment: bool = False
    const_norm: float | None = None  # taken for the maximum of the scores; None: the real one
    slices: SliceSettings | None = None
    window_kernel_min_tokens: int = 8192
    kernel_slice_tokens: int = 0  # the kernel's own slice of queries; 0: it does not slice

    @property
    def softmax_dtype(self) -> torch.dtype:
        return torch.float32 if self.fp32_softmax else self.dtype
