"""The end of launches that generate: the next token of each row that has one to draw."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from vllm.device.launch import Launch
from vllm.device.observer import StepObserver
from vllm.messages.step import StepPlan
from vllm.models.interfaces import Model
from vllm.sample.interface import LogprobTensors, SamplerOutput, SampleRows
from vllm.sample.sampler import USUAL_WANTS, Sampler
from vllm.worker.ends.drawn import Drawn, DrawnStep, DrawnTokens, ExplainedPrompt, LogprobCopies
from vllm.worker.ends.draws import Draws, draws_of, dummy_draws
from vllm.worker.ends.launch_end import Download, LaunchEnd
from vllm.worker.slots import DUMMY_SLOT, Slots

# Prompt log-probabilities need logits [rows, vocab] in float32; this bounds one piece to 64 MiB.
_LOGITS_PER_PIECE = 16 * 2**20


class DrawTokens(LaunchEnd[Drawn]):
    """Draws a token for every row that samples, and explains prompts where requests ask for it."""

    def __init__(
        self,
        model: Model,
        slots: Slots,
        sampler: Sampler,
        observer: StepObserver,
        download: Download,
    ) -> None:
        self._model = model
        self._slots = slots
        self._device = slots.device
        self._sampler = sampler
        self._observer = observer
        self._download = download
        self._no_masks = self._device.upload(np.empty((0, 0), np.int32))
        self._piece_rows = max(1, _LOGITS_PER_PIECE // slots.shape.vocab_size)

    def finish(self, plan: StepPlan, launch: Launch, hidden: Tensor) -> Drawn | None:
        prompts = self._explain_prompts(launch, hidden)
        draws = draws_of(plan, launch)
        if draws is None:
            return Drawn(None, prompts) if prompts else None
        self._observer.drawing_begins(launch)
        tokens = DrawnTokens.download(self._download, draws, self._draw(draws, hidden))
        return Drawn(tokens, prompts)

    def join(self, step: int, endings: Sequence[Drawn]) -> DrawnStep:
        return DrawnStep(step, endings, self._slots.sampling.take_failures())

    def rehearse(self, launch: Launch, hidden: Tensor, all_ways: bool) -> None:
        draws = dummy_draws(launch)
        for wants in USUAL_WANTS if all_ways else USUAL_WANTS[:1]:
            with self._slots.sampling.pretend(DUMMY_SLOT, wants):
                sampled = self._draw(draws, hidden)
                self._device.download(sampled.token_ids).wait()
            self._device.step_boundary()

    def _draw(self, draws: Draws, hidden: Tensor) -> SamplerOutput:
        """Draw a token for each row of `draws` from hidden states [T, H] of its launch."""
        if len(draws.hidden_np) != len(hidden):
            hidden = hidden.index_select(0, self._device.upload(draws.hidden_np))
            self._device.step_boundary()  # what follows depends on the number of rows alone
        sampled = self._sample(draws, hidden)
        self._slots.write_drawn(draws.slots_np, draws.positions_np, sampled.token_ids)
        return sampled

    def _sample(self, draws: Draws, hidden: Tensor) -> SamplerOutput:
        if self._sampler.wants_greatest(draws.slots_np, self._slots.sampling):
            token_ids = self._model.greatest(hidden)
            if token_ids is not None:
                return SamplerOutput(token_ids, None)
        upload = self._device.upload
        rows = SampleRows(
            slots_np=draws.slots_np,
            positions_np=draws.positions_np,
            upload=upload,
            tokens=self._slots.tokens,
            state=self._slots.sampling,
            masks_np=draws.masks_np,
            masks=upload(draws.masks) if len(draws.masks) else self._no_masks,
        )
        return self._sampler.sample(self._model.logits(hidden), rows)

    def _explain_prompts(self, launch: Launch, hidden: Tensor) -> Sequence[ExplainedPrompt]:
        """Log-probabilities of prompt tokens, for the rows whose requests ask for them.

        A row that computes [a, b) of an n-token prompt explains the tokens at a + 1 .. min(b, n-1):
        the hidden state at position p predicts the token at p + 1.
        """
        slots = self._slots
        wanted = slots.wants_prompt_logprobs(launch.slots_np)
        if not wanted.any():
            return ()
        explained = []
        for row in np.flatnonzero(wanted).tolist():
            slot, start = int(launch.slots_np[row]), int(launch.starts_np[row])
            last = int(slots.num_prompt_tokens_np[slot]) - 1
            num_tokens = min(start + int(launch.counts_np[row]), last) - start
            if num_tokens <= 0:
                continue
            first_hidden = int(launch.query_start_np[row])
            pieces = self._explain_tokens(
                hidden[first_hidden : first_hidden + num_tokens],
                slots.tokens[slot, start + 1 : start + 1 + num_tokens],
                int(slots.prompt_logprobs_np[slot]),
            )
            copies = LogprobCopies(self._download, pieces)
            explained.append(ExplainedPrompt(int(launch.plan_rows_np[row]), start + 1, copies))
        return explained

    def _explain_tokens(self, hidden: Tensor, token_ids: Tensor, k: int) -> list[LogprobTensors]:
        """Log-probabilities of token_ids [L] given the hidden states [L, H] before them."""
        rows = self._piece_rows
        return [
            self._sampler.prompt_logprobs(self._model.logits(some_hidden), some_ids, k)
            for some_hidden, some_ids in zip(
                torch.split(hidden, rows), torch.split(token_ids, rows), strict=True
            )
        ]
