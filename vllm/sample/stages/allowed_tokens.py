from __future__ import annotations

import math

from torch import Tensor

from vllm.sample.interface import SampleRows
from vllm.sample.stages.base import FlagStage
from vllm.sample.state import Want


class AllowedTokens(FlagStage):
    """Nothing but the tokens a request allows."""

    want = Want.ALLOWED_TOKENS

    def apply(self, logits: Tensor, rows: SampleRows) -> Tensor:
        ids = rows.state.allowed_ids.get(rows.slots_np, rows.slots).long()  # [P, W]
        kept = logits.gather(1, ids)
        return logits.fill_(-math.inf).scatter_(1, ids, kept)
