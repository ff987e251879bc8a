from __future__ import annotations

from torch import Tensor

from vllm.sample.interface import SampleRows
from vllm.sample.stages.base import FlagStage
from vllm.sample.state import Want


class Temperature(FlagStage):
    want = Want.TEMPERATURE

    def apply(self, logits: Tensor, rows: SampleRows) -> Tensor:
        return logits.div_(rows.state.temperature.index_select(0, rows.slots).unsqueeze(1))
