from __future__ import annotations

import torch
from torch import Tensor

from vllm.sample.interface import SampleRows
from vllm.sample.ragged import power_of_two
from vllm.sample.stages.base import FlagStage
from vllm.sample.state import Want


class Penalties(FlagStage):
    """Repetition over prompt and output; frequency and presence over the output.

    All is counted from the slot's tokens on the device, which include those of steps in flight.
    """

    want = Want.PENALTIES

    def apply(self, logits: Tensor, rows: SampleRows) -> Tensor:
        state = rows.state
        longest = min(power_of_two(int(rows.positions_np.max(initial=1))), rows.tokens.shape[1])
        position = torch.arange(longest, dtype=torch.int32, device=logits.device)
        tokens = rows.tokens[:, :longest].index_select(0, rows.slots).long()  # [P, L]
        known = position < rows.positions.unsqueeze(1)
        # Any known token will do where there is none: what happens to it depends on it alone.
        tokens = torch.where(known, tokens, tokens[:, :1])
        begin = state.num_prompt_tokens.index_select(0, rows.slots).unsqueeze(1)
        is_output = (known & (position >= begin)).float()
        counts = torch.zeros_like(logits).scatter_add_(1, tokens, is_output).gather(1, tokens)

        def of_rows(values: Tensor) -> Tensor:
            return values.index_select(0, rows.slots).unsqueeze(1)

        values = logits.gather(1, tokens)
        repetition = of_rows(state.repetition_penalty)
        values = torch.where(values > 0, values / repetition, values * repetition)
        values -= of_rows(state.frequency_penalty) * counts
        values -= of_rows(state.presence_penalty) * (counts > 0)
        return logits.scatter_(1, tokens, values)
