from __future__ import annotations

from torch import Tensor

from vllm.sample.interface import SampleRows
from vllm.sample.stages.base import FlagStage
from vllm.sample.state import Want


class CustomProcessors(FlagStage):
    """Callables of the request, row by row, in the order given.

    One that raises ends its own request: the reason is left in `state.failures`, and the row goes
    on with the logits it had.
    """

    want = Want.PROCESSORS
    on_host = True

    def apply(self, logits: Tensor, rows: SampleRows) -> Tensor:
        state = rows.state
        where = zip(rows.slots_np.tolist(), rows.positions_np.tolist(), strict=True)
        for i, (slot, position) in enumerate(where):
            num_prompt_tokens = int(state.num_prompt_tokens_np[slot])
            token_ids: list[int] = rows.tokens[slot, :position].tolist()
            prompt, output = token_ids[:num_prompt_tokens], token_ids[num_prompt_tokens:]
            try:
                row = logits[i].clone()
                for processor in state.processors[slot]:
                    row = processor(prompt, output, row)
            except Exception as error:  # the user's code: whatever it raises is the request's end
                state.failures[slot] = f"a logits processor failed: {type(error).__name__}: {error}"
            else:
                logits[i] = row
        return logits
