"""Query heads that share heads of keys and values, as a dimension of their own."""

from __future__ import annotations

from torch import Tensor


def is_gqa(q: Tensor, k: Tensor) -> bool:
    """Neither one head of keys per query head, nor one for all."""
    return q.dim() == 4 and k.shape[1] not in (1, q.shape[1])


def gqa_input_reshape_fwd(
    q: Tensor, k: Tensor, v: Tensor, attention_mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """q [B, H, T, D] to [B, K, H // K, T, D]; k, v [B, K, S, D] to [B, K, 1, S, D]; the mask alike.

    Masks of one head, or of all, are [B, 1 or H, T, S].
    """
    num_kv_heads = k.shape[1]
    mask = attention_mask
    if mask is not None and mask.dim() == 4:
        is_shared = mask.shape[1] == 1
        mask = mask.unsqueeze(1) if is_shared else mask.unflatten(1, (num_kv_heads, -1))
    return q.unflatten(1, (num_kv_heads, -1)), k.unsqueeze(2), v.unsqueeze(2), mask


def gqa_output_reshape(x: Tensor) -> Tensor:
    """[B, K, G, T, D] to [B, K * G, T, D]."""
    return x.flatten(1, 2)
