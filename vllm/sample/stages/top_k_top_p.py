from __future__ import annotations

import math

from torch import Tensor

from vllm.ops.sampling import truncation_bound
from vllm.sample.interface import SampleRows
from vllm.sample.stages.base import FlagStage
from vllm.sample.state import Want


class TopKTopP(FlagStage):
    """The top_k most likely tokens, and of these the fewest whose probabilities add up to top_p."""

    want = Want.TOP_K_TOP_P

    def apply(self, logits: Tensor, rows: SampleRows) -> Tensor:
        state, vocab_size = rows.state, logits.shape[1]
        # Every row that has the flag limits one of the two.
        width = vocab_size if state.static_shapes else int(state.top_k_np[rows.slots_np].max())
        top_k = state.top_k.index_select(0, rows.slots)
        top_p = state.top_p.index_select(0, rows.slots)
        bound = truncation_bound(logits, top_k, top_p, width)
        return logits.masked_fill_(logits < bound, -math.inf)
