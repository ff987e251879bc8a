"""Prefill: the launch's own keys and values, behind those of its context.

Everywhere q is [R, N, Q, D], k [R, K, S, D], v [R, K, S, Dv] with S = C * P + Q, the result
[R, N, Q, Dv].
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vllm.device.attention import AttentionSpec
from vllm.platforms.hpu.attention.expansion import prompt_mask
from vllm.platforms.hpu.attention.metadata import PromptTables
from vllm.platforms.hpu.attention.settings import AttentionSettings


class Heads(NamedTuple):
    """What every way to attend takes."""

    q: Tensor
    k: Tensor
    v: Tensor


class PromptAttention(ABC):
    """One way to attend to a prompt."""

    @abstractmethod
    def needs_mask(self, query_len: int, context: int, window: int) -> bool:
        """Whether launches of `query_len` tokens per row, `context` before them, are masked."""

    @abstractmethod
    def __call__(self, heads: Heads, tables: PromptTables, spec: AttentionSpec) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class NaiveAttention(PromptAttention):
    """Two products and a softmax: every feature, and all scores in memory at once."""

    softmax_dtype: torch.dtype

    def needs_mask(self, query_len: int, context: int, window: int) -> bool:
        return True

    def __call__(self, heads: Heads, tables: PromptTables, spec: AttentionSpec) -> Tensor:
        q, k, v = heads
        grouped = (q * spec.scale).unflatten(1, (k.shape[1], -1))  # [R, K, G, Q, D]
        scores = grouped @ k.unsqueeze(2).mT  # [R, K, G, Q, S]
        scores = scores.to(self.softmax_dtype)
        if spec.softcap > 0:
            scores = spec.softcap * torch.tanh(scores / spec.softcap)
        mask = self._mask(tables, q.shape[2])
        weights = torch.softmax(scores + mask.unsqueeze(1), dim=-1)
        return (weights.to(v.dtype) @ v.unsqueeze(2)).flatten(1, 2)

    def _mask(self, tables: PromptTables, query_len: int) -> Tensor:
        if tables.mask.numel():
            return tables.mask
        # This layer is soft-capped in a model whose other layers need no mask.
        return prompt_mask(tables.query_lens, 0, query_len, tables.window, self.softmax_dtype)


@dataclass(frozen=True, slots=True)
class FusedAttention(PromptAttention):
    """The kernel: no scores in memory. Masks causally by itself where there is no context."""

    kernel: Callable[..., Tensor]
    settings: AttentionSettings
    naive: NaiveAttention

    def needs_mask(self, query_len: int, context: int, window: int) -> bool:
        return context > 0 or (window > 0 and not self._has_window_kernel(query_len))

    def _has_window_kernel(self, query_len: int) -> bool:
        """Worth it, and possible, only where the kernel cuts the queries itself."""
        piece = self.settings.kernel_slice_tokens
        long = query_len >= self.settings.window_kernel_min_tokens
        return piece > 0 and long and query_len % piece == 0

    def __call__(self, heads: Heads, tables: PromptTables, spec: AttentionSpec) -> Tensor:
        if spec.softcap > 0:
            return self.naive(heads, tables, spec)
        mode = softmax_mode(self.settings, heads.q.dtype)
        shared: tuple[Any, ...] = (spec.scale, mode, True)  # True: recompute
        if tables.mask.numel():
            return self.kernel(*heads, tables.mask, 0.0, False, *shared)
        rest: tuple[Any, ...] = (tables.query_lens, "right")
        if tables.window:
            # Releases before window_size was added take no more arguments than `rest`.
            # Tokens to the left of the query, itself not counted, and to its right.
            rest = (*rest, False, False, (tables.window - 1, 0))
        return self.kernel(*heads, None, 0.0, True, *shared, *rest)


def softmax_mode(settings: AttentionSettings, dtype: torch.dtype) -> str:
    """Of Habana's kernels: they have no approximation in float32, nor float32 inside of float16."""
    if dtype == torch.float32:
        return "none"
    if settings.fp32_softmax:
        return "fp32" if dtype == torch.bfloat16 else "none"
    return "fast"


@dataclass(frozen=True, slots=True)
class FlexAttention(PromptAttention):
    """torch's flex_attention, whose scores are edited where they are made."""

    def needs_mask(self, query_len: int, context: int, window: int) -> bool:
        return context > 0 or window > 0

    def __call__(self, heads: Heads, tables: PromptTables, spec: AttentionSpec) -> Tensor:
        from torch.nn.attention.flex_attention import flex_attention

        mask, softcap = tables.mask, spec.softcap

        def edit(score: Tensor, row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            if softcap > 0:
                score = softcap * torch.tanh(score / softcap)
            if mask.numel():
                return score + mask[row, 0, query, key]
            return torch.where(key <= query, score, -torch.inf)

        is_grouped = heads.q.shape[1] != heads.k.shape[1]
        out = flex_attention(*heads, score_mod=edit, scale=spec.scale, enable_gqa=is_grouped)
        assert isinstance(out, Tensor)
        return out
