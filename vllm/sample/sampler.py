"""From logits to tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
import torch
from torch import Tensor

from vllm.errors import ConfigError
from vllm.messages.step import Int32Array
from vllm.ops.registry import Ops
from vllm.ops.sampling import draw
from vllm.sample.interface import LogprobTensors, SamplerOutput, SampleRows
from vllm.sample.logprobs import spread
from vllm.sample.stages import STAGES
from vllm.sample.state import SamplingState, Want

LOGPROBS_MODES = ("raw_logprobs", "raw_logits", "processed_logprobs", "processed_logits")


# What launches want of the sampler as a rule; anything else is rare.
USUAL_WANTS: Final = (
    Want(0),
    Want.DRAW | Want.TEMPERATURE,
    Want.DRAW | Want.TEMPERATURE | Want.MIN_P | Want.TOP_K_TOP_P,
)


# The other stages are what `choose` does.
_BEFORE_DRAWS: Final = sum(
    stage.want
    for stage in STAGES
    if not stage.want & (Want.TEMPERATURE | Want.MIN_P | Want.TOP_K_TOP_P)
)


class Sampler:
    """Draws one token per row; a row's token depends on nothing but the row.

    A row whose logits hold NaN, or nothing but -inf, draws NO_TOKEN; the other rows do not notice.
    Log-probabilities are those of the model ("raw") or of what the stages left
    ("processed"), as `logprobs_mode` says.
    """

    def __init__(
        self,
        ops: Ops,
        vocab_size: int,
        device: torch.device,
        logprobs_mode: str = "raw_logprobs",
    ) -> None:
        if logprobs_mode not in LOGPROBS_MODES:
            raise ConfigError(
                f"--logprobs-mode must be one of {', '.join(LOGPROBS_MODES)}, got {logprobs_mode!r}"
            )
        self.vocab_size = vocab_size
        self.device = device
        self.greatest: Callable[[Tensor], Tensor] = ops.greatest
        self.choose: Callable[..., Tensor] = ops.choose
        self.gather_logprobs = ops.gather_logprobs
        self.normalizes = logprobs_mode.endswith("logprobs")
        self.is_raw = logprobs_mode.startswith("raw")

    def wants_greatest(self, slots_np: Int32Array, state: SamplingState) -> bool:
        """Whether nothing but the greatest logit of every row is wanted."""
        return not np.bitwise_or.reduce(state.wants_np[slots_np], initial=0)

    def sample(self, logits: Tensor, rows: SampleRows) -> SamplerOutput:
        """Draw from logits [S, V] float32, which are used up: their values change."""
        assert logits.shape == (len(rows.slots_np), self.vocab_size), logits.shape
        wants_np = rows.state.wants_np[rows.slots_np]
        present = int(np.bitwise_or.reduce(wants_np, initial=0))
        if not present:
            return SamplerOutput(self.greatest(logits), None)
        if present & Want.LOGPROBS:
            return self._sample_with_logprobs(logits, rows, wants_np, present)
        logits = self._run_stages(logits, rows, wants_np, present & _BEFORE_DRAWS)
        return SamplerOutput(self._choose(logits, rows, wants_np), None)

    def _sample_with_logprobs(
        self, logits: Tensor, rows: SampleRows, wants_np: Int32Array, present: int
    ) -> SamplerOutput:
        asked_np = np.flatnonzero(wants_np & Want.LOGPROBS)
        asked = self._upload(asked_np)
        if self.is_raw:
            before_draws = present & _BEFORE_DRAWS
            # Stages change logits in place; `choose` does not.
            untouched = len(asked_np) == len(wants_np) and not before_draws
            scores = logits if untouched else logits.index_select(0, asked)
            logits = self._run_stages(logits, rows, wants_np, before_draws)
            token_ids = self._choose(logits, rows, wants_np)
        else:
            logits = self._run_stages(logits, rows, wants_np, present)
            token_ids = self._choose_processed(logits, rows, wants_np)
            scores = logits.index_select(0, asked)
        k = int(rows.state.num_logprobs_np[rows.slots_np].max())
        logprobs = self._logprobs(scores, token_ids.index_select(0, asked), k)
        return SamplerOutput(token_ids, spread(logprobs, asked, len(wants_np)))

    def prompt_logprobs(self, logits: Tensor, next_token_ids: Tensor, k: int) -> LogprobTensors:
        """Of the prompt tokens [L] that followed where the model gave logits [L, V].

        k -1: the whole vocabulary. Stages do not apply to a prompt.
        """
        return self._logprobs(logits, next_token_ids, self.vocab_size if k == -1 else k)

    def _logprobs(self, scores: Tensor, token_ids: Tensor, k: int) -> LogprobTensors:
        ids = token_ids.clamp(min=0)
        return LogprobTensors(*self.gather_logprobs(scores, ids, k, self.normalizes))

    def _run_stages(
        self, logits: Tensor, rows: SampleRows, wants_np: Int32Array, present: int
    ) -> Tensor:
        if not present:
            return logits
        for stage in STAGES:
            if not present & stage.want:
                continue
            index_np = np.flatnonzero(wants_np & stage.want)
            some, index = self._at(rows, index_np)
            wanted = stage.wanted(some)
            if not wanted.all():
                index_np = index_np[wanted]
                some, index = self._at(rows, index_np)
            if len(index_np) == len(wants_np):
                logits = stage.apply(logits, rows)
            elif len(index_np):
                logits.index_copy_(0, index, stage.apply(logits.index_select(0, index), some))
        return logits

    def _choose(self, logits: Tensor, rows: SampleRows, wants_np: Int32Array) -> Tensor:
        """Token ids [S] int32 from logits not narrowed yet: the greatest, or a draw."""
        draws_np = wants_np & Want.DRAW != 0
        if not draws_np.any():
            return self.greatest(logits)
        draws = self._upload(draws_np)
        return self.choose(logits, draws, rows.slots, rows.positions, rows.state.draw_tables)

    def _choose_processed(self, logits: Tensor, rows: SampleRows, wants_np: Int32Array) -> Tensor:
        """The same from logits that every stage has seen."""
        token_ids = self.greatest(logits)
        drawing_np = np.flatnonzero(wants_np & Want.DRAW)
        if not len(drawing_np):
            return token_ids
        some, index = self._at(rows, drawing_np)
        return token_ids.index_copy_(0, index, self._draw(logits.index_select(0, index), some))

    def _draw(self, logits: Tensor, rows: SampleRows) -> Tensor:
        seeds = rows.state.seeds.index_select(0, rows.slots)
        return draw(logits, seeds, rows.positions)

    def _at(self, rows: SampleRows, index_np: np.ndarray) -> tuple[SampleRows, Tensor]:
        index = self._upload(index_np)
        everything = len(index_np) == len(rows.slots_np)
        return rows if everything else rows.at(index_np), index

    def _upload(self, index_np: np.ndarray) -> Tensor:
        return torch.from_numpy(index_np).to(self.device, non_blocking=True)
