"""The model runner: executes step plans by putting its parts to work in order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vllm.attention.interface import AttentionBackend, AttentionMetas
from vllm.core.plan import Int32Array, LogprobArrays, PromptLogprobs, StepPlan, StepResult
from vllm.models.interfaces import ForwardInputs, Model
from vllm.platforms.base import Device, HostCopy
from vllm.sample.interface import NO_MASK, LogprobTensors, SampleRows
from vllm.sample.sampler import Sampler
from vllm.worker.graphs import GraphRunner
from vllm.worker.inputs import gather_inputs
from vllm.worker.planner import Launch, Planner
from vllm.worker.slots import Slots

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


class LogprobCopies:
    """Log-probabilities on their way to the host."""

    def __init__(self, device: Device, pieces: Sequence[LogprobTensors]) -> None:
        self._copies = [[device.download(tensor) for tensor in piece] for piece in pieces]

    def wait(self) -> LogprobArrays:
        pieces = [[copy.wait() for copy in piece] for piece in self._copies]
        if len(pieces) == 1:
            return LogprobArrays(*pieces[0])
        return LogprobArrays(*(np.concatenate(parts) for parts in zip(*pieces, strict=True)))


class RunningStep:
    """A step whose device work is queued; `result` waits for its tokens."""

    def __init__(
        self,
        step: int,
        token_ids: HostCopy | None,
        logprobs: LogprobCopies | None,
        prompt_logprobs: Sequence[tuple[int, int, LogprobCopies]],
        failures: dict[int, str],
    ) -> None:
        self._step = step
        self._token_ids = token_ids
        self._logprobs = logprobs
        self._prompt_logprobs = prompt_logprobs
        self._failures = failures

    def result(self) -> StepResult:
        return StepResult(
            step=self._step,
            token_ids=np.empty(0, np.int32) if self._token_ids is None else self._token_ids.wait(),
            logprobs=None if self._logprobs is None else self._logprobs.wait(),
            prompt_logprobs=tuple(
                PromptLogprobs(row, start, copies.wait())
                for row, start, copies in self._prompt_logprobs
            ),
            failures=self._failures,
        )


class ModelRunner:
    """The only runner. Features and devices enter through its parts."""

    def __init__(self, parts: RunnerParts) -> None:
        self.model = parts.model
        self.device = parts.device
        self.planner = parts.planner
        self.slots = parts.slots
        self.backends = parts.backends
        self.graphs = parts.graphs
        self.sampler = parts.sampler
        self._piece_rows = max(1, _LOGITS_PER_PIECE // parts.slots.shape.vocab_size)

    @torch.inference_mode()
    def execute(self, plan: StepPlan) -> RunningStep:
        """Queue a step's device work, in order after the steps before it."""
        self.slots.apply(plan)
        hidden_parts: list[Tensor] = []
        row_parts: list[Int32Array] = []
        prompt_logprobs: list[tuple[int, int, LogprobCopies]] = []
        for launch in self.planner.split(plan):
            hidden = self.launch(launch)
            prompt_logprobs.extend(self._prompt_logprobs(launch, hidden))
            sampling = np.flatnonzero(plan.samples[launch.plan_rows_np])
            if len(sampling):
                hidden_parts.append(self._last_hidden(launch, hidden, sampling))
                row_parts.append(launch.plan_rows_np[sampling])
        if not hidden_parts:
            self.device.step_boundary()
            return RunningStep(plan.step, None, None, prompt_logprobs, {})
        token_ids, logprobs = self._sample(plan, hidden_parts, row_parts)
        self.device.step_boundary()
        failures = self.slots.sampling.take_failures()
        return RunningStep(plan.step, token_ids, logprobs, prompt_logprobs, failures)

    def launch(self, launch: Launch) -> Tensor:
        """Hidden states [T, H] of a launch, its keys and values written to the cache."""
        inputs, metas = self._prepare(launch)
        return self.graphs.run(launch.key, self.model, inputs, metas)

    @torch.inference_mode()
    def rehearse(self, launch: Launch) -> None:
        """Capture and run a launch of dummy rows up to its logits; for warm-up and measuring."""
        inputs, metas = self._prepare(launch)
        self.graphs.capture(launch.key, self.model, inputs, metas)
        hidden = self.graphs.run(launch.key, self.model, inputs, metas)
        self.model.logits(hidden[:1])
        self.device.step_boundary()

    def _prepare(self, launch: Launch) -> tuple[ForwardInputs, AttentionMetas]:
        metas = [
            backend.plan(launch, self.slots, group) for group, backend in enumerate(self.backends)
        ]
        return gather_inputs(self.slots, launch), metas

    def _last_hidden(self, launch: Launch, hidden: Tensor, rows: np.ndarray) -> Tensor:
        """Hidden states of the last tokens of these launch rows: [len(rows), H]."""
        if len(rows) == launch.num_tokens:
            return hidden
        last = launch.query_start_np[1:][rows] - 1
        return hidden.index_select(0, self.device.upload(last))

    def _sample(
        self, plan: StepPlan, hidden_parts: Sequence[Tensor], row_parts: Sequence[Int32Array]
    ) -> tuple[HostCopy, LogprobCopies | None]:
        """Draw a token for each sampling row, in the order of the plan's rows."""
        hidden, rows = hidden_parts[0], row_parts[0]
        if len(hidden_parts) > 1:
            rows = np.concatenate(row_parts)
            order = np.argsort(rows)
            rows = rows[order]
            hidden = torch.cat(list(hidden_parts)).index_select(0, self.device.upload(order))
        slots_np = plan.slots[rows]
        positions_np = plan.starts[rows] + plan.counts[rows]
        masks_np = np.full(plan.num_rows, NO_MASK, np.int32)
        masks_np[plan.masked_rows] = np.arange(len(plan.masked_rows))
        upload = self.device.upload
        drawn = self.sampler.sample(
            self.model.logits(hidden),
            SampleRows(
                slots_np=slots_np,
                positions_np=positions_np,
                slots=upload(slots_np),
                positions=upload(positions_np),
                tokens=self.slots.tokens,
                state=self.slots.sampling,
                masks_np=masks_np[rows],
                masks=upload(plan.masks),
            ),
        )
        self.slots.write_drawn(slots_np, positions_np, drawn.token_ids)
        copy = self.device.download(drawn.token_ids)
        if drawn.logprobs is None:
            return copy, None
        return copy, LogprobCopies(self.device, [drawn.logprobs])

    def _prompt_logprobs(
        self, launch: Launch, hidden: Tensor
    ) -> list[tuple[int, int, LogprobCopies]]:
        """Per wanting row: its plan row, the first token position, and the values on their way.

        A row that computes [a, b) of an n-token prompt explains the tokens at a + 1 .. min(b, n-1):
        the hidden state at position p predicts the token at p + 1.
        """
        wanted = self.slots.wants_prompt_logprobs(launch.slots_np)
        if not wanted.any():
            return []
        found = []
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
            found.append((int(launch.plan_rows_np[row]), start + 1, explained))
        return found

    def _explain_tokens(self, hidden: Tensor, token_ids: Tensor, k: int) -> LogprobCopies:
        """Log-probabilities of token_ids [L] given the hidden states [L, H] before them."""
        rows = self._piece_rows
        pieces = [
            self.sampler.prompt_logprobs(self.model.logits(some_hidden), some_ids, k)
            for some_hidden, some_ids in zip(
                torch.split(hidden, rows), torch.split(token_ids, rows), strict=True
            )
        ]
        return LogprobCopies(self.device, pieces)
