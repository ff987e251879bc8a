from __future__ import annotations

from torch import Tensor

from vllm.sample.interface import SampleRows
from vllm.sample.stages.base import FORBIDDEN, BoolArray
from vllm.sample.state import Want


class MinTokens:
    """No token that ends the output before it has its minimal length."""

    want = Want.MIN_TOKENS
    on_host = False

    def wanted(self, rows: SampleRows) -> BoolArray:
        state, slots = rows.state, rows.slots_np
        num_output = rows.positions_np - state.num_prompt_tokens_np[slots]
        short: BoolArray = num_output < state.min_tokens_np[slots]
        return short

    def apply(self, logits: Tensor, rows: SampleRows) -> Tensor:
        ids = rows.state.stop_ids.get(rows.slots_np, rows.slots).long()  # [P, W]
        # The minimum keeps the -inf of a stop token that is not allowed at all.
        return logits.scatter_(1, ids, logits.gather(1, ids).clamp(max=FORBIDDEN))
