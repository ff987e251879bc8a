from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vllm.sample.interface import SampleRows
from vllm.sample.stages.base import FlagStage
from vllm.sample.state import Want

# The most likely tokens that top_p looks at before it sorts a vocabulary. At usual temperatures the
# nucleus is far smaller, and selecting 1024 of 128 k costs a fraction of sorting them.
NUCLEUS_GUESS: Final = 1024


class TopKTopP(FlagStage):
    """The top_k most likely tokens, and of these the fewest whose probabilities add up to top_p.

    Tokens as likely as the last one kept are kept, too, so the result does not depend on how a
    sort orders equals.
    """

    want = Want.TOP_K_TOP_P

    def apply(self, logits: Tensor, rows: SampleRows) -> Tensor:
        state, slots_np, vocab_size = rows.state, rows.slots_np, logits.shape[1]
        top_k_np, top_p_np = state.top_k_np[slots_np], state.top_p_np[slots_np]
        guessed = np.where(top_p_np < 1.0, NUCLEUS_GUESS, 1)
        width = int(np.where(top_k_np < vocab_size, top_k_np, guessed).max(initial=1))
        if state.static_shapes:
            width = vocab_size
        top_k = state.top_k.index_select(0, rows.slots).unsqueeze(1)  # [P, 1]
        top_p = state.top_p.index_select(0, rows.slots).unsqueeze(1)
        if (top_p_np == 1.0).all() and not state.static_shapes:
            bound = _kth_largest(logits, top_k, width)
        else:
            # In units of the largest weight. With softmax's own sum, because its result for a row
            # does not depend on the other rows.
            whole = torch.ones_like(top_p)
            if (top_k_np == vocab_size).any() or state.static_shapes:
                whole = logits.softmax(dim=-1).amax(dim=-1, keepdim=True).reciprocal_()
            limits = _Limits(top_k, top_p, whole)
            bound = _nucleus_bound(logits, limits, min(width, vocab_size))
        return logits.masked_fill_(logits < bound, -math.inf)


class _Limits(NamedTuple):
    top_k: Tensor  # [P, 1], V: off
    top_p: Tensor  # [P, 1]
    whole: Tensor  # [P, 1]: weight of all tokens, where top_k is off

    def at(self, index: Tensor) -> _Limits:
        return _Limits(self.top_k[index], self.top_p[index], self.whole[index])


def _kth_largest(logits: Tensor, top_k: Tensor, width: int) -> Tensor:
    """[P, 1]; -inf where top_k is off."""
    largest = logits.topk(width, dim=-1).values
    bound = largest.gather(1, (top_k - 1).clamp(max=width - 1).long())
    return bound.masked_fill(top_k == logits.shape[1], -math.inf)


def _nucleus_bound(logits: Tensor, limits: _Limits, width: int) -> Tensor:
    """[P, 1]: the least logit to keep. `width` is at least every top_k that is on."""
    vocab_size = logits.shape[1]
    bound, found = _bound_within(logits, limits, width)
    while width < vocab_size and not bool(found.all()):
        width = min(16 * width, vocab_size)
        index = (~found).squeeze(1).nonzero().squeeze(1)
        bound[index], found[index] = _bound_within(
            logits.index_select(0, index), limits.at(index), width
        )
    return bound


def _bound_within(logits: Tensor, limits: _Limits, width: int) -> tuple[Tensor, Tensor]:
    """The bound as seen among the `width` largest logits, and whether it lies there, both [P, 1].

    A bound that was found is the same at any width: sums run from the largest down.
    """
    top_k, top_p = limits.top_k, limits.top_p
    no_top_k, no_top_p = top_k == logits.shape[1], top_p == 1.0
    largest = logits.topk(width, dim=-1).values  # [P, W], descending
    weights = (largest - largest[:, :1]).exp()
    weights.masked_fill_(torch.arange(width, device=logits.device) >= top_k, 0.0)
    cumulative = weights.cumsum(dim=-1)
    total = torch.where(no_top_k, limits.whole, cumulative[:, -1:])
    # Another token is needed as long as those before it fall short of top_p.
    needed = 1 + (cumulative < top_p * total).sum(dim=-1, keepdim=True)
    found = ~no_top_k | no_top_p | (needed <= width)
    count = torch.where(no_top_p, top_k, torch.minimum(needed, top_k)).clamp(max=width).long()
    bound = largest.gather(1, count - 1)
    return bound.masked_fill(no_top_k & no_top_p, -math.inf), found
