"""From logits to tokens."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from torch import Tensor

from vllm.core.plan import NO_TOKEN, Int32Array
from vllm.errors import ConfigError
from vllm.ops.registry import Ops
from vllm.sample.interface import LogprobTensors, SamplerOutput, SampleRows
from vllm.sample.logprobs import gather_logprobs, spread
from vllm.sample.stages import STAGES
from vllm.sample.state import Want

LOGPROBS_MODES = ("raw_logprobs", "raw_logits", "processed_logprobs", "processed_logits")


# What launches want of the sampler as a rule; anything else is rare.
USUAL_WANTS: Final = (
    Want(0),
    Want.DRAW | Want.TEMPERATURE,
    Want.DRAW | Want.TEMPERATURE | Want.MIN_P | Want.TOP_K_TOP_P,
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
        self.exponential_noise = ops.exponential_noise
        self.normalizes = logprobs_mode.endswith("logprobs")
        self.is_raw = logprobs_mode.startswith("raw")

    def sample(self, logits: Tensor, rows: SampleRows) -> SamplerOutput:
        """Draw from logits [S, V] float32, which are used up: their values change."""
        assert logits.shape == (len(rows.slots_np), self.vocab_size), logits.shape
        wants_np = rows.state.wants_np[rows.slots_np]
        present = int(np.bitwise_or.reduce(wants_np, initial=0))
        if not present:
            return SamplerOutput(greatest(logits), None)
        if not present & Want.LOGPROBS:
            logits = self._run_stages(logits, rows, wants_np, present)
            return SamplerOutput(self._choose(logits, rows, wants_np), None)
        asked_np = np.flatnonzero(wants_np & Want.LOGPROBS)
        asked = self._upload(asked_np)
        raw = logits.index_select(0, asked) if self.is_raw else logits
        logits = self._run_stages(logits, rows, wants_np, present)
        token_ids = self._choose(logits, rows, wants_np)
        scores = raw if self.is_raw else logits.index_select(0, asked)
        k = int(rows.state.num_logprobs_np[rows.slots_np].max())
        logprobs = self._logprobs(scores, token_ids.index_select(0, asked), k)
        return SamplerOutput(token_ids, spread(logprobs, asked, len(wants_np)))

    def prompt_logprobs(self, logits: Tensor, next_token_ids: Tensor, k: int) -> LogprobTensors:
        """Of the prompt tokens [L] that followed where the model gave logits [L, V].

        k -1: the whole vocabulary. Stages do not apply to a prompt.
        """
        return self._logprobs(logits, next_token_ids, self.vocab_size if k == -1 else k)

    def _logprobs(self, scores: Tensor, token_ids: Tensor, k: int) -> LogprobTensors:
        if self.normalizes:
            scores = scores.log_softmax(dim=-1)
        return gather_logprobs(scores, token_ids.clamp(min=0), k)

    def _run_stages(
        self, logits: Tensor, rows: SampleRows, wants_np: Int32Array, present: int
    ) -> Tensor:
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
        """Token ids [S] int32: the most likely one, or a draw."""
        drawing_np = np.flatnonzero(wants_np & Want.DRAW)
        if not len(drawing_np):
            return greatest(logits)
        if len(drawing_np) == len(wants_np):
            return self._draw(logits, rows)
        token_ids = greatest(logits)
        some, index = self._at(rows, drawing_np)
        return token_ids.index_copy_(0, index, self._draw(logits.index_select(0, index), some))

    def _draw(self, logits: Tensor, rows: SampleRows) -> Tensor:
        """A race of exponential clocks with the probabilities as rates: the first to ring wins."""
        seeds = rows.state.seeds.index_select(0, rows.slots)
        noise = self.exponential_noise(seeds, rows.positions, self.vocab_size)
        return greatest(logits.softmax(dim=-1).div_(noise))

    def _at(self, rows: SampleRows, index_np: np.ndarray) -> tuple[SampleRows, Tensor]:
        index = self._upload(index_np)
        everything = len(index_np) == len(rows.slots_np)
        return rows if everything else rows.at(index_np, index), index

    def _upload(self, index_np: np.ndarray) -> Tensor:
        return torch.from_numpy(index_np).to(self.device, non_blocking=True)


def greatest(values: Tensor) -> Tensor:
    """Column of the greatest of each row of [S, V], int32; NO_TOKEN for NaN or nothing but -inf.

    `max` reports NaN and takes as long as `argmax`: the check costs a comparison per row.
    """
    best, token_ids = values.max(dim=-1)
    return token_ids.int().masked_fill_((best > -torch.inf).logical_not_(), NO_TOKEN)
