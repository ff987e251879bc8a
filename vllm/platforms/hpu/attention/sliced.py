"""Prefill behind a long prefix, cut into kernel calls whose results are merged.

One call over the whole of it would need a mask and a workspace for every query and key. Cut, only
pieces that touch the diagonal or padding have a mask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vllm.device.attention import AttentionSpec
from vllm.platforms.hpu.attention.metadata import PromptTables
from vllm.platforms.hpu.attention.prompt import FusedAttention, Heads, PromptAttention, softmax_mode
from vllm.platforms.hpu.attention.settings import SliceSettings


class Part(NamedTuple):
    """Attention to some of the keys, float32."""

    out: Tensor  # [R, N, Q, Dv], normalised over these keys
    peak: Tensor  # [R, N, Q, 1], highest score
    total: Tensor  # [R, N, Q, 1], sum of exp(score - peak)


@dataclass(frozen=True, slots=True)
class SlicedAttention(PromptAttention):
    """For launches of one row; the others go to `whole`."""

    kernel: Callable[..., tuple[Tensor, ...]]
    slices: SliceSettings
    whole: FusedAttention
    end_graph: Callable[[], Any]

    def needs_mask(self, query_len: int, context: int, window: int) -> bool:
        return self.whole.needs_mask(query_len, context, window)

    def __call__(self, heads: Heads, tables: PromptTables, spec: AttentionSpec) -> Tensor:
        num_rows, num_keys = heads.k.shape[0], heads.k.shape[2]
        has_context = tables.context_blocks.shape[1] > 0
        is_long = num_keys >= self.slices.min_tokens
        if num_rows != 1 or not (has_context and is_long) or tables.window or spec.softcap:
            return self.whole(heads, tables, spec)
        query_len = heads.q.shape[2]
        rows = [
            self._rows(heads, tables, spec, slice(begin, min(begin + size, query_len)))
            for size in (self.slices.chunk_tokens,)
            for begin in range(0, query_len, size)
        ]
        return torch.cat(rows, 2)

    def _rows(self, heads: Heads, tables: PromptTables, spec: AttentionSpec, rows: slice) -> Tensor:
        """Results of some of the queries."""
        merged: Part | None = None
        context = heads.k.shape[2] - heads.q.shape[2]
        for keys, masked in self._keys(context, rows):
            mask = None
            if masked:
                # Finite, so that a piece of nothing but padding has a softmax; it weighs nothing
                # beside the queries' own keys.
                lowest = torch.finfo(tables.mask.dtype).min / 2
                mask = tables.mask[:, :, rows, keys].clamp(min=lowest)
            piece = Heads(heads.q[:, :, rows], heads.k[:, :, keys], heads.v[:, :, keys])
            part = self._attend(piece, mask, spec)
            merged = part if merged is None else merge(merged, part)
            if self.slices.graph_breaks:
                self.end_graph()
        assert merged is not None
        return merged.out.to(heads.q.dtype)

    def _keys(self, context: int, rows: slice) -> Iterator[tuple[slice, bool]]:
        """Pieces of what queries `rows` can see, and whether some of them are hidden from some."""
        size = self.slices.chunk_tokens
        padding = self.slices.max_context_padding
        certain = 0 if padding is None else context - padding
        for begin in range(0, context, size):
            end = min(begin + size, context)
            yield slice(begin, end), end > certain
        for begin in range(0, rows.stop, size):
            end = min(begin + size, rows.stop)
            yield slice(context + begin, context + end), end > rows.start

    def _attend(self, piece: Heads, mask: Tensor | None, spec: AttentionSpec) -> Part:
        # The kernel shares a KV head among no query heads or all. With one row, KV heads can take
        # the place of the batch: [K, G, Q, D] over [K, 1, S, D].
        num_kv_heads = piece.k.shape[1]
        q = piece.q.view(num_kv_heads, -1, *piece.q.shape[2:])
        k, v = piece.k.transpose(0, 1), piece.v.transpose(0, 1)
        if mask is not None:
            mask = mask.expand(num_kv_heads, -1, -1, -1)
        mode = softmax_mode(self.whole.settings, q.dtype)
        out, peak, inverse, *_ = self.kernel(
            q, k, v, mask, 0.0, spec.scale, False, True, mode, None, "right"
        )
        shape = (1, spec.num_heads, q.shape[2], -1)
        out, peak, inverse = (x.float().reshape(shape) for x in (out, peak, inverse))
        return Part(out, peak, inverse.reciprocal())


def merge(a: Part, b: Part) -> Part:
    """Attention to the keys of both."""
    peak = torch.maximum(a.peak, b.peak)
    weight_a = a.total * torch.exp(a.peak - peak)
    weight_b = b.total * torch.exp(b.peak - peak)
    total = weight_a + weight_b
    return Part((a.out * weight_a + b.out * weight_b) / total, peak, total)
