from __future__ import annotations

import torch
from torch import Tensor

from vllm.sample.interface import SampleRows
from vllm.sample.ragged import ANY_TOKEN
from vllm.sample.stages.base import FORBIDDEN, FlagStage
from vllm.sample.state import Want

_NOT_OUTPUT = -3  # matches neither a token nor NO_TOKEN


class BadWords(FlagStage):
    """The last token of a word is forbidden where the output ends in the rest of it."""

    want = Want.BAD_WORDS

    def apply(self, logits: Tensor, rows: SampleRows) -> Tensor:
        words = rows.state.bad_words.get(rows.slots_np, rows.slots)  # [P, W, M]
        prefixes, lasts = words[..., :-1], words[..., -1]
        recent = self._recent(rows, prefixes.shape[-1]).unsqueeze(1)  # [P, 1, M - 1]
        complete = ((prefixes == recent) | (prefixes == ANY_TOKEN)).all(-1) & (lasts >= 0)
        # Adding leaves a token alone that one word forbids and another does not.
        change = complete.float() * FORBIDDEN
        return logits.scatter_add_(1, lasts.clamp(min=0).long(), change)

    def _recent(self, rows: SampleRows, count: int) -> Tensor:
        """The last tokens of each output, [P, count]; _NOT_OUTPUT where it has fewer."""
        back = torch.arange(-count, 0, dtype=torch.int32, device=rows.positions.device)
        positions = rows.positions.unsqueeze(1) + back  # [P, count]
        begin = rows.state.num_prompt_tokens.index_select(0, rows.slots).unsqueeze(1)
        tokens = rows.tokens[rows.slots.long().unsqueeze(1), positions.clamp(min=0).long()]
        return tokens.masked_fill(positions < begin, _NOT_OUTPUT)
