from __future__ import annotations

from torch import Tensor

from vllm.sample.interface import SampleRows
from vllm.sample.stages.base import FlagStage
from vllm.sample.state import Want


class LogitBias(FlagStage):
    want = Want.LOGIT_BIAS

    def apply(self, logits: Tensor, rows: SampleRows) -> Tensor:
        state = rows.state
        ids = state.bias_ids.get(rows.slots_np, rows.slots).long()  # [P, W]
        return logits.scatter_add_(1, ids, state.bias_values.get(rows.slots_np, rows.slots))
