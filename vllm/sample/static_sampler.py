"""Sampling for devices that compile for shapes: what rows want chooses values, never shapes."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from torch import Tensor

from vllm.messages.step import Int32Array
from vllm.sample.interface import SamplerOutput, SampleRows
from vllm.sample.ragged import power_of_two
from vllm.sample.sampler import Sampler
from vllm.sample.stages import STAGES
from vllm.sample.state import Want

_NARROWING: Final = Want.MIN_P | Want.TOP_K_TOP_P


class StaticSampler(Sampler):
    """Draws as Sampler does, each stage on all rows at once, of which those keep it that want it.

    A launch is compiled once per set of stages; the usual ones are brought down to USUAL_WANTS: the
    most likely tokens, draws, and draws from some tokens only.
    """

    def sample(self, logits: Tensor, rows: SampleRows) -> SamplerOutput:
        wants_np = rows.state.wants_np[rows.slots_np]
        present = completed(int(np.bitwise_or.reduce(wants_np, initial=0)))
        if not present:
            return SamplerOutput(self.greatest(logits), None)
        raw = logits
        logits = self._run_stages(logits, rows, wants_np, present)
        token_ids = self._choose(logits, rows, wants_np)
        if not present & Want.LOGPROBS:
            return SamplerOutput(token_ids, None)
        k = int(rows.state.num_logprobs_np[rows.slots_np].max())
        k = min(power_of_two(k) if k else 0, self.vocab_size)
        scores = raw if self.is_raw else logits
        return SamplerOutput(token_ids, self._logprobs(scores, token_ids, k))

    def _run_stages(
        self, logits: Tensor, rows: SampleRows, wants_np: Int32Array, present: int
    ) -> Tensor:
        stages = [stage for stage in STAGES if present & stage.want]
        live_np = wants_np.copy()
        for stage in stages:
            live_np[~stage.wanted(rows)] &= ~np.int32(stage.want)
        # Rows that asked for a stage may all do without it for this token: a grammar that does not
        # restrict yet has no mask to compute with. Stages that come for free with others stay.
        idle = int(np.bitwise_or.reduce(wants_np)) & ~int(np.bitwise_or.reduce(live_np))
        stages = [stage for stage in stages if not idle & stage.want]
        live = self._upload(live_np)
        for stage in stages:
            if stage.on_host:
                index_np = np.flatnonzero(live_np & stage.want)
                some, index = self._at(rows, index_np)
                applied = stage.apply(logits.index_select(0, index), some)
                logits = logits.index_copy(0, index, applied)
                continue
            applied = stage.apply(logits.clone(), rows)
            keeps = live.bitwise_and(int(stage.want)).ne(0).unsqueeze(1)
            logits = torch.where(keeps, applied, logits)
        return logits

    def _choose(self, logits: Tensor, rows: SampleRows, wants_np: Int32Array) -> Tensor:
        token_ids = self.greatest(logits)
        draws_np = wants_np & Want.DRAW != 0
        if not draws_np.any():
            return token_ids
        return torch.where(self._upload(draws_np), self._draw(logits, rows), token_ids)


def completed(present: int) -> int:
    """The wants of a launch, with those that come for free with others."""
    if present & Want.DRAW:
        present |= Want.TEMPERATURE
    if present & _NARROWING:
        present |= _NARROWING
    return present
