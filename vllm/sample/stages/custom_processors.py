from __future__ import annotations

import inspect
from functools import lru_cache

import torch
from torch import Tensor

from vllm.errors import BadRequest
from vllm.sample.interface import SampleRows
from vllm.sample.stages.base import FlagStage
from vllm.sample.state import Want
from vllm.sampling_params import LogitsProcessor


class CustomProcessors(FlagStage):
    """Callables of the request, called on the host row by row, in the order given."""

    want = Want.PROCESSORS

    def apply(self, logits: Tensor, rows: SampleRows) -> Tensor:
        for i, (slot, position) in enumerate(
            zip(rows.slots_np.tolist(), rows.positions_np.tolist(), strict=True)
        ):
            num_prompt_tokens = int(rows.state.num_prompt_tokens_np[slot])
            token_ids: list[int] = rows.tokens[slot, :position].tolist()
            prompt, output = token_ids[:num_prompt_tokens], token_ids[num_prompt_tokens:]
            row = logits[i]
            for processor in rows.state.processors[slot]:
                arguments = (prompt, output) if _takes_prompt(processor) else (output,)
                row = _checked(processor(*arguments, row), row, processor)
            logits[i] = row
        return logits


@lru_cache(maxsize=256)
def _takes_prompt(processor: LogitsProcessor) -> bool:
    return len(inspect.signature(processor).parameters) == 3


def _checked(result: object, row: Tensor, processor: LogitsProcessor) -> Tensor:
    if not isinstance(result, torch.Tensor) or result.shape != row.shape:
        given = tuple(result.shape) if isinstance(result, torch.Tensor) else type(result).__name__
        raise BadRequest(
            f"logits processor {processor!r} returned {given}; it must return a tensor of shape "
            f"{tuple(row.shape)}",
            "logits_processors",
        )
    return result
