from __future__ import annotations

import math

from torch import Tensor

from vllm.ops.sampling import min_p_bound
from vllm.sample.interface import SampleRows
from vllm.sample.stages.base import FlagStage
from vllm.sample.state import Want


class MinP(FlagStage):
    """Only tokens at least min_p times as probable as the most probable one."""

    want = Want.MIN_P

    def apply(self, logits: Tensor, rows: SampleRows) -> Tensor:
        bound = min_p_bound(logits, rows.state.log_min_p.index_select(0, rows.slots))
        return logits.masked_fill_(logits < bound, -math.inf)
