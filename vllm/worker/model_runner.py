"""The model runner: executes step plans by putting its parts to work in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vllm.device.attention import AttentionBackend, AttentionMetas
from vllm.device.device import Device
from vllm.device.graphs import Forward, GraphRunner
from vllm.device.launch import ForwardInputs, Launch
from vllm.device.observer import StepObserver
from vllm.device.planner import Planner
from vllm.messages.step import StepPlan
from vllm.models.interfaces import Model
from vllm.sample.interface import LogprobTensors, SamplerOutput, SampleRows
from vllm.sample.sampler import USUAL_WANTS, Sampler
from vllm.worker.draws import Draws, draws_of, dummy_draws
from vllm.worker.inputs import gather_inputs
from vllm.worker.running_step import Drawn, StepAnswer
from vllm.worker.slots import DUMMY_SLOT, Slots

# Prompt log-probabilities need logits [rows, vocab] in float32; this bounds one piece to 64 MiB.
_LOGITS_PER_PIECE = 16 * 2**20


@dataclass(frozen=True, slots=True)
class RunnerParts:
    """What a runner is made of; all of one device."""

    model: Model
    device: Device
    planner: Planner
    slots: Slots
    backends: Sequence[AttentionBackend]  # by KV group
    graphs: GraphRunner
    sampler: Sampler
    begin_answer: Callable[[int], StepAnswer]  # of a step's number
    observer: StepObserver = StepObserver()


class ModelRunner:
    """The only runner. Features and devices enter through its parts."""

    def __init__(self, parts: RunnerParts) -> None:
        self.model = parts.model
        self.device = parts.device
        self.planner = parts.planner
        self.slots = parts.slots
        self.forward = Forward(parts.model, parts.backends)
        self.graphs = parts.graphs
        self.sampler = parts.sampler
        self.begin_answer = parts.begin_answer
        self.observer = parts.observer
        self._no_masks = parts.device.upload(np.empty((0, 0), np.int32))
        self._piece_rows = max(1, _LOGITS_PER_PIECE // parts.slots.shape.vocab_size)

    @torch.inference_mode()
    def execute(self, plan: StepPlan) -> StepAnswer:
        """Queue a step's device work, in order after the steps before it."""
        self.observer.step_begins(plan)
        self.slots.apply(plan)
        answer = self.begin_answer(plan.step)
        for launch in self.planner.split(plan):
            self.observer.launch_begins(launch)
            hidden = self.launch(launch)
            for row, start, pieces in self._prompt_logprobs(launch, hidden):
                answer.add_prompt_logprobs(row, start, pieces)
            draws = draws_of(plan, launch)
            if draws is not None:
                self.observer.drawing_begins(launch)
                answer.add_drawn(draws, self._draw(draws, hidden))
            self.device.step_boundary()
            self.observer.launch_ends(launch)
        self.observer.step_ends(plan)
        answer.add_failures(self.slots.sampling.take_failures())
        return answer

    def launch(self, launch: Launch) -> Tensor:
        """Hidden states [T, H] of a launch, its keys and values written to the cache."""
        return self._run(launch, *self._prepare(launch))

    @torch.inference_mode()
    def rehearse(
        self, launch: Launch, draws_all_ways: bool = False, captures: bool = False
    ) -> None:
        """Run a launch of dummy rows and draw from it, in one way or all usual ones; for warm-up.

        `captures`: capture it first.
        """
        self.observer.rehearsal_begins(launch, captures)
        inputs, metas = self._prepare(launch)
        if captures:
            self.graphs.capture(launch.key, self.forward, inputs, metas)
        hidden = self._run(launch, inputs, metas)
        draws = dummy_draws(launch)
        for wants in USUAL_WANTS if draws_all_ways else USUAL_WANTS[:1]:
            with self.slots.sampling.pretend(DUMMY_SLOT, wants):
                sampled = self._draw(draws, hidden)
                Drawn.download(self.device, draws, sampled).token_ids.wait()
            self.device.step_boundary()
        self.observer.rehearsal_ends(launch, captures)

    def rehearse_puts(self, num_rows: int) -> None:
        """Write this many rows of what admissions write, to the dummy slot; for warm-up."""
        self.slots.rehearse_puts(num_rows)

    def _prepare(self, launch: Launch) -> tuple[ForwardInputs, AttentionMetas]:
        metas = [
            backend.plan(launch, tables, self.slots.device.upload)
            for backend, tables in zip(self.forward.backends, self.slots.tables, strict=True)
        ]
        inputs = gather_inputs(self.slots, launch)
        self.device.step_boundary()
        return inputs, metas

    def _run(self, launch: Launch, inputs: ForwardInputs, metas: AttentionMetas) -> Tensor:
        hidden = self.graphs.run(launch.key, self.forward, inputs, metas)
        self.device.step_boundary()  # whatever is done with them, the model is one unit
        return hidden

    def _draw(self, draws: Draws, hidden: Tensor) -> SamplerOutput:
        """Draw a token for each row of `draws` from hidden states [T, H] of its launch."""
        if len(draws.hidden_np) != len(hidden):
            hidden = hidden.index_select(0, self.device.upload(draws.hidden_np))
            self.device.step_boundary()  # what follows depends on the number of rows alone
        sampled = self._sample(draws, hidden)
        self.slots.write_drawn(draws.slots_np, draws.positions_np, sampled.token_ids)
        return sampled

    def _sample(self, draws: Draws, hidden: Tensor) -> SamplerOutput:
        if self.sampler.wants_greatest(draws.slots_np, self.slots.sampling):
            token_ids = self.model.greatest(hidden)
            if token_ids is not None:
                return SamplerOutput(token_ids, None)
        upload = self.device.upload
        rows = SampleRows(
            slots_np=draws.slots_np,
            positions_np=draws.positions_np,
            upload=upload,
            tokens=self.slots.tokens,
            state=self.slots.sampling,
            masks_np=draws.masks_np,
            masks=upload(draws.masks) if len(draws.masks) else self._no_masks,
        )
        return self.sampler.sample(self.model.logits(hidden), rows)

    def _prompt_logprobs(
        self, launch: Launch, hidden: Tensor
    ) -> Iterator[tuple[int, int, list[LogprobTensors]]]:
        """Per wanting row: its plan row, the first token position, and the values in pieces.

        A row that computes [a, b) of an n-token prompt explains the tokens at a + 1 .. min(b, n-1):
        the hidden state at position p predicts the token at p + 1.
        """
        wanted = self.slots.wants_prompt_logprobs(launch.slots_np)
        if not wanted.any():
            return
        for row in np.flatnonzero(wanted).tolist():
            slot, start = int(launch.slots_np[row]), int(launch.starts_np[row])
            last = int(self.slots.num_prompt_tokens_np[slot]) - 1
            num_tokens = min(start + int(launch.counts_np[row]), last) - start
            if num_tokens <= 0:
                continue
            first_hidden = int(launch.query_start_np[row])
            explained = self._explain_tokens(
                hidden[first_hidden : first_hidden + num_tokens],
                self.slots.tokens[slot, start + 1 : start + 1 + num_tokens],
                int(self.slots.prompt_logprobs_np[slot]),
            )
            yield int(launch.plan_rows_np[row]), start + 1, explained

    def _explain_tokens(self, hidden: Tensor, token_ids: Tensor, k: int) -> list[LogprobTensors]:
        """Log-probabilities of token_ids [L] given the hidden states [L, H] before them."""
        rows = self._piece_rows
        return [
            self.sampler.prompt_logprobs(self.model.logits(some_hidden), some_ids, k)
            for some_hidden, some_ids in zip(
                torch.split(hidden, rows), torch.split(token_ids, rows), strict=True
            )
        ]
