"""The model runner: executes step plans by putting its parts to work in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vllm.device.agreement import Agreement
from vllm.device.attention import AttentionBackend, AttentionMetas
from vllm.device.device import Device
from vllm.device.graphs import Forward, GraphRunner
from vllm.device.launch import ForwardInputs, Launch
from vllm.device.observer import StepObserver
from vllm.device.planner import Planner
from vllm.messages.step import StepPlan
from vllm.models.interfaces import Model
from vllm.worker.ends.launch_end import LaunchEnd, StepAnswer
from vllm.worker.expert_balance import NoBalance
from vllm.worker.inputs import LaunchInputs
from vllm.worker.slots import Slots


@dataclass(frozen=True, slots=True)
class RunnerParts:
    """What a runner is made of; all of one device."""

    model: Model
    device: Device
    planner: Planner
    slots: Slots
    inputs: LaunchInputs
    backends: Sequence[AttentionBackend]  # by KV group
    graphs: GraphRunner
    end: LaunchEnd[Any]
    observer: StepObserver = StepObserver()
    agreement: Agreement = Agreement()
    balance: NoBalance = NoBalance()


class ModelRunner:
    """The only runner. Features and devices enter through its parts."""

    def __init__(self, parts: RunnerParts) -> None:
        self.model = parts.model
        self.device = parts.device
        self.planner = parts.planner
        self.slots = parts.slots
        self.inputs = parts.inputs
        self.forward = Forward(parts.model, parts.backends)
        self.graphs = parts.graphs
        self.end = parts.end
        self.observer = parts.observer
        self.agreement = parts.agreement
        self.balance = parts.balance

    @torch.inference_mode()
    def execute(self, plan: StepPlan) -> StepAnswer:
        """Queue a step's device work, in order after the steps before it."""
        self.observer.step_begins(plan)
        self.slots.apply(plan)
        endings = []
        num_launches = 0
        for launch in self.agreement.joined(self.planner.split(plan)):
            self.observer.launch_begins(launch)
            hidden = self._run(launch, *self._prepare(launch, self.inputs.gather))
            ending = self.end.finish(plan, launch, hidden)
            if ending is not None:
                endings.append(ending)
            self.device.step_boundary()
            self.observer.launch_ends(launch)
            num_launches += 1
        self.balance.step_ends(num_launches)
        self.observer.step_ends(plan)
        return self.end.join(plan.step, endings)

    @torch.inference_mode()
    def rehearse(self, launch: Launch, ends_all_ways: bool = False, captures: bool = False) -> None:
        """Run a launch of dummy rows and end it, in one way or all usual ones; for warm-up.

        `captures`: capture it first.
        """
        self.observer.rehearsal_begins(launch, captures)
        inputs, metas = self._prepare(launch, self.inputs.rehearse)
        if captures:
            self.graphs.capture(launch.key, self.forward, inputs, metas)
            # A graph that keeps its inputs copies others into them, which is compiled as well.
            inputs, metas = self._prepare(launch, self.inputs.rehearse)
        hidden = self._run(launch, inputs, metas)
        self.end.rehearse(launch, hidden, ends_all_ways)
        self.observer.rehearsal_ends(launch, captures)

    @torch.inference_mode()
    def rehearse_transfer(self, launch: Launch) -> None:
        """Receive dummy hidden states of a launch and send such; for warm-up, on all stages alike.

        Nothing where there is one stage.
        """
        self.inputs.rehearse_transfer(launch)
        self.end.rehearse_transfer(launch)

    def rehearse_puts(self, num_rows: int) -> None:
        """Write this many rows of what plans write, to the dummy slot; for warm-up."""
        self.slots.rehearse_puts(num_rows)

    def _prepare(
        self, launch: Launch, gather: Callable[[Launch], ForwardInputs]
    ) -> tuple[ForwardInputs, AttentionMetas]:
        metas = [
            backend.plan(launch, tables, self.slots.device.upload)
            for backend, tables in zip(self.forward.backends, self.slots.tables, strict=True)
        ]
        inputs = gather(launch)
        self.device.step_boundary()
        return inputs, metas

    def _run(self, launch: Launch, inputs: ForwardInputs, metas: AttentionMetas) -> Tensor:
        """Hidden states [T, H] of a launch, its keys and values written to the cache."""
        hidden = self.graphs.run(launch.key, self.forward, inputs, metas)
        self.device.step_boundary()  # whatever is done with them, the model is one unit
        return hidden
