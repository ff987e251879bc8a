"""Device side of attention metadata: once per forward, inside what is captured."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vllm.platforms.hpu.attention.metadata import (
    DecodeMeta,
    DecodeTables,
    PromptMeta,
    PromptTables,
)

# (query_len, context, window) of a launch, all in tokens.
NeedsMask = Callable[[int, int, int], bool]


def expand_decode(meta: DecodeMeta, dtype: torch.dtype, softmax_dtype: torch.dtype) -> DecodeTables:
    groups = meta.block_groups
    num_rows = meta.slot_mapping.shape[0]
    device = groups.device
    # A comparison instead of one_hot, whose treatment of -1 differs between devices.
    mapping = groups.unsqueeze(1) == torch.arange(num_rows, device=device)  # [n, R]
    offset = torch.arange(meta.block_size, dtype=torch.int32, device=device)
    first, end = meta.block_range.unsqueeze(-1).unbind(0)  # [n, 1]
    return DecodeTables(
        block_list=meta.block_list,
        block_groups=groups,
        group_rows=torch.where(groups < 0, num_rows, groups),
        mapping=mapping.to(dtype),
        exact_mapping=mapping.to(torch.float32),
        bias=additive((offset >= first) & (offset < end), softmax_dtype),
        slot_mapping=meta.slot_mapping,
        contiguous=meta.contiguous,
    )


def expand_prompt(meta: PromptMeta, dtype: torch.dtype, needs_mask: NeedsMask) -> PromptTables:
    num_rows, num_blocks = meta.context_blocks.shape
    query_len = meta.slot_mapping.shape[0] // num_rows
    context = num_blocks * meta.block_size
    if needs_mask(query_len, context, meta.window):
        mask = prompt_mask(meta.context_lens, context, query_len, meta.window, dtype)
    else:
        mask = meta.query_lens.new_empty(0, dtype=dtype)
    return PromptTables(
        query_lens=meta.query_lens,
        context_blocks=meta.context_blocks,
        slot_mapping=meta.slot_mapping,
        mask=mask,
        block_size=meta.block_size,
        window=meta.window,
    )


def prompt_mask(
    context_lens: Tensor, context: int, query_len: int, window: int, dtype: torch.dtype
) -> Tensor:
    """[R, 1, Q, context + Q]. Padding queries see something too, as nothing gives NaN."""
    device = context_lens.device
    query = torch.arange(query_len, dtype=torch.int32, device=device).unsqueeze(1)  # [Q, 1]
    current = query.mT <= query  # [Q, Q]
    if window:
        current = current & (query.mT > query - window)
    current = current.expand(context_lens.shape[0], query_len, query_len)
    if context == 0:
        return additive(current, dtype).unsqueeze(1)
    key = torch.arange(context, dtype=torch.int32, device=device)
    length = context_lens.view(-1, 1, 1)
    past = key < length  # [R, 1, context]
    if window:
        past = past & (key > length + query - window)  # [R, Q, context]
    past = past.expand(-1, query_len, -1)
    return additive(torch.cat((past, current), -1), dtype).unsqueeze(1)


def additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where visible, -inf elsewhere."""
    zero = torch.zeros((), dtype=dtype, device=visible.device)
    return zero.masked_fill(~visible, -torch.inf)
