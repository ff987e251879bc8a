"""Ends of launches: how a step's endings are joined, and what a rank does that answers nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vllm.device.agreement import JoinedLaunch, LaunchSize
from vllm.device.attention import AttentionMetas
from vllm.device.device import Device, HostCopy, MemoryInfo
from vllm.device.graphs import EagerRunner
from vllm.device.launch import Launch, TokenInputs, make_launch
from vllm.device.observer import StepObserver
from vllm.device.planner import Planner
from vllm.messages.step import Admission, StepPlan, StepResult
from vllm.models.interfaces import Model
from vllm.ops.registry import resolve
from vllm.sample.sampler import USUAL_WANTS, Sampler
from vllm.sample.state import SamplingState
from vllm.sampling_params import SamplingParams
from vllm.worker.ends.draw_tokens import DrawTokens
from vllm.worker.ends.launch_end import Download, LaunchEnd, StepAnswer
from vllm.worker.ends.silent import Silent
from vllm.worker.inputs import GatherTokens
from vllm.worker.model_runner import ModelRunner, RunnerParts
from vllm.worker.slots import Slots, SlotsShape

V = 12
SHAPE = SlotsShape(max_num_seqs=6, max_model_len=20, pipeline_depth=1, vocab_size=V, kv_groups=())


class Tape:
    """Everything that reaches the device, in order: ops, transfers, ends of units."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def without_copies(self) -> list[str]:
        return [event for event in self.events if event not in ("copy", "wait")]


class TapedDevice(Device):
    """A copy to the host ends a unit of work, as on devices that accumulate them."""

    torch_device = torch.device("cpu")

    def __init__(self) -> None:
        self.tape = Tape()

    def memory(self) -> MemoryInfo:
        return MemoryInfo(0, 0, 0)

    def upload(self, array: np.ndarray) -> Tensor:
        self.tape.events.append("upload")
        return torch.from_numpy(np.array(array))

    def download(self, tensor: Tensor) -> HostCopy:
        self.step_boundary()
        self.tape.events.append("copy")
        return TapedCopy(self.tape, tensor.numpy().copy())

    def step_boundary(self) -> None:
        self.tape.events.append("boundary")

    def synchronize(self) -> None:
        raise AssertionError("a step waits for nothing")

    def peak_bytes(self, run: Callable[[], object]) -> int:
        raise NotImplementedError


@dataclass
class TapedCopy:
    tape: Tape
    values: np.ndarray

    def wait(self) -> np.ndarray:
        self.tape.events.append("wait")
        return self.values


class Successor(Model):
    """The most likely token after t is t + 1, the next t + 2, and so on, round the vocabulary."""

    def __init__(self, tape: Tape) -> None:
        nn.Module.__init__(self)
        self.tape = tape

    def forward(self, inputs: TokenInputs, metas: AttentionMetas) -> Tensor:
        self.tape.events.append(f"model on {len(inputs.token_ids)} tokens")
        behind = (torch.arange(V) - inputs.token_ids[:, None] - 1) % V
        return -behind.float()

    def logits(self, hidden: Tensor) -> Tensor:
        self.tape.events.append(f"logits of {len(hidden)}")
        return hidden.clone()


class OddFirst(Planner):
    """Two launches: rows with odd numbers, then those with even ones."""

    def split(self, plan: StepPlan) -> Sequence[Launch]:
        rows = np.arange(plan.num_rows, dtype=np.int32)
        return [
            make_launch(plan.slots[some], plan.starts[some], plan.counts[some], 4, some)
            for some in (rows[1::2], rows[::2])
            if len(some)
        ]

    def together(
        self, launches: Sequence[Launch], sizes: Sequence[Sequence[LaunchSize]]
    ) -> Iterator[JoinedLaunch]:
        raise AssertionError("there is one copy")

    def rehearsal(self, num_tokens: int, max_row_tokens: int) -> Launch:
        zeros = np.zeros(1, np.int32)
        return make_launch(zeros, zeros, np.array([num_tokens], np.int32), 4)


MakeEnd = Callable[[Model, Slots, Download], LaunchEnd[Any]]


def runner_of(make_end: MakeEnd, is_silent: bool = False) -> tuple[ModelRunner, Tape]:
    device = TapedDevice()
    state = SamplingState(SHAPE.num_slots, V, SHAPE.max_tokens, device, resolve({}))
    slots = Slots(SHAPE, device, state)
    model = Successor(device.tape)

    def make(download: Download) -> LaunchEnd[Any]:
        return make_end(model, slots, download)

    parts = RunnerParts(
        model=model,
        device=device,
        planner=OddFirst(),
        slots=slots,
        inputs=GatherTokens(slots),
        backends=(),
        graphs=EagerRunner(),
        end=Silent(make, device) if is_silent else make(device.download),
    )
    return ModelRunner(parts), device.tape


def draw_tokens(model: Model, slots: Slots, download: Download) -> DrawTokens:
    sampler = Sampler(resolve({}), V, torch.device("cpu"))
    return DrawTokens(model, slots, sampler, StepObserver(), download)


class AsManyAsSlots(LaunchEnd[tuple[np.ndarray, list[HostCopy]]]):
    """Gives a row as many tokens as its slot's number: those that follow its last one."""

    def __init__(self, model: Model, slots: Slots, download: Download) -> None:
        self._model = model
        self._download = download

    def finish(
        self, plan: StepPlan, launch: Launch, hidden: Tensor
    ) -> tuple[np.ndarray, list[HostCopy]] | None:
        if not plan.samples[launch.plan_rows_np].any():
            return None
        last = launch.query_start_np[1:] - 1
        copies = [
            self._download(self._model.logits(hidden[row]).topk(n).indices.int())
            for row, n in zip(last.tolist(), launch.slots_np.tolist(), strict=True)
        ]
        return launch.plan_rows_np, copies

    def join(self, step: int, endings: Sequence[tuple[np.ndarray, list[HostCopy]]]) -> StepAnswer:
        return SeveralTokens(step, endings)

    def rehearse(self, launch: Launch, hidden: Tensor, all_ways: bool) -> None:
        raise NotImplementedError


@dataclass
class SeveralTokens:
    step: int
    endings: Sequence[tuple[np.ndarray, list[HostCopy]]]

    def result(self) -> StepResult:
        rows = np.concatenate([rows for rows, _ in self.endings])
        tokens = [copy.wait() for _, copies in self.endings for copy in copies]
        in_order = [tokens[i] for i in np.argsort(rows)]
        counts = np.array([len(some) for some in in_order], np.int32)
        return StepResult(self.step, np.concatenate(in_order), counts=counts)


def plan_of(
    prompts: Sequence[Sequence[int]], samples: Sequence[bool] = (), **params: Any
) -> StepPlan:
    """Admits a request per prompt, in slots from 1 on, and computes it."""
    counts = np.array([len(prompt) for prompt in prompts], np.int32)
    slots = np.arange(1, len(prompts) + 1, dtype=np.int32)
    wants = SamplingParams(temperature=0.0, **params)
    admissions = [
        Admission(slot, "r", np.array(prompt, np.int32), len(prompt), wants)
        for slot, prompt in zip(slots.tolist(), prompts, strict=True)
    ]
    return StepPlan(
        step=7,
        slots=slots,
        starts=np.zeros(len(prompts), np.int32),
        counts=counts,
        samples=np.array(samples or [True] * len(prompts)),
        releases=np.empty(0, np.int32),
        admissions=tuple(admissions),
        blocks=np.empty((0, 4), np.int32),
    )


PROMPTS = [[5], [1, 2, 3], [11], [4, 6], [8, 7]]


def values_of(answer: StepAnswer) -> StepResult:
    result = answer.result()
    assert result is not None
    return result


def test_tokens_of_several_launches_are_in_the_order_of_the_plan_one_per_row() -> None:
    runner, _ = runner_of(draw_tokens)
    result = values_of(runner.execute(plan_of(PROMPTS)))
    assert result.step == 7
    assert result.token_ids.tolist() == [6, 4, 0, 7, 8]
    assert len(result.counts) == 0 and result.logprobs is None


def test_rows_that_do_not_sample_have_no_place_in_the_result() -> None:
    runner, _ = runner_of(draw_tokens)
    result = values_of(runner.execute(plan_of(PROMPTS, [True, False, True, False, True])))
    assert result.token_ids.tolist() == [6, 0, 8]
    nothing = values_of(runner.execute(plan_of(PROMPTS, [False] * len(PROMPTS))))
    assert len(nothing.token_ids) == 0


def test_logprobs_of_several_launches_are_in_the_order_of_the_plan() -> None:
    runner, _ = runner_of(draw_tokens)
    result = values_of(runner.execute(plan_of(PROMPTS, logprobs=2, prompt_logprobs=1)))
    assert result.logprobs is not None
    expected = [[token, token, (token + 1) % V] for token in result.token_ids.tolist()]
    assert result.logprobs.token_ids.tolist() == expected
    explained = {
        entry.row: entry.values.token_ids[:, 0].tolist() for entry in result.prompt_logprobs
    }
    assert explained == {row: prompt[1:] for row, prompt in enumerate(PROMPTS) if len(prompt) > 1}
    assert all(entry.start == 1 for entry in result.prompt_logprobs)


def test_an_end_may_give_several_tokens_per_row() -> None:
    runner, _ = runner_of(AsManyAsSlots)
    result = values_of(runner.execute(plan_of(PROMPTS)))
    assert result.counts.tolist() == [1, 2, 3, 4, 5]
    rows = np.split(result.token_ids, np.cumsum(result.counts)[:-1])
    assert [row.tolist() for row in rows] == [
        [(prompt[-1] + i) % V for i in range(1, slot + 1)]
        for slot, prompt in enumerate(PROMPTS, start=1)
    ]


def test_launches_without_values_have_no_ending() -> None:
    runner, _ = runner_of(AsManyAsSlots)
    result = values_of(runner.execute(plan_of(PROMPTS, [True, False, True, False, True])))
    assert result.counts.tolist() == [1, 3, 5]


WAYS: list[tuple[MakeEnd, dict[str, Any]]] = [
    (draw_tokens, {}),
    (draw_tokens, {"logprobs": 2}),
    (draw_tokens, {"prompt_logprobs": 2}),
    (draw_tokens, {"logprobs": 0, "prompt_logprobs": 0}),
    (AsManyAsSlots, {}),
]


@pytest.mark.parametrize(("make_end", "params"), WAYS)
@pytest.mark.parametrize("samples", [True, False])
def test_a_silent_rank_does_the_same_in_the_same_units_copies_nothing_and_answers_nothing(
    make_end: MakeEnd, params: dict[str, Any], samples: bool
) -> None:
    plan = plan_of(PROMPTS, [samples] * len(PROMPTS), **params)
    driver, drivers = runner_of(make_end)
    silent, silents = runner_of(make_end, is_silent=True)
    driver.execute(plan)
    assert "wait" not in drivers.events, "a step is not waited for before it is asked"
    assert silent.execute(plan).result() is None
    assert silents.events == silents.without_copies() == drivers.without_copies()
    copies = samples or "prompt_logprobs" in params
    assert ("copy" in drivers.events) == copies
    assert torch.equal(driver.slots.tokens, silent.slots.tokens)


@pytest.mark.parametrize("is_silent", [False, True])
def test_failures_are_those_of_one_step(is_silent: bool) -> None:
    runner, _ = runner_of(draw_tokens, is_silent)
    runner.slots.sampling.failures[2] = "as told"
    answers = [runner.execute(plan_of(PROMPTS)) for _ in range(2)]
    assert runner.slots.sampling.failures == {}
    results = [answer.result() for answer in answers]
    if is_silent:
        assert results == [None, None]
    else:
        assert [result and result.failures for result in results] == [{2: "as told"}, {}]


def test_a_rehearsal_waits_for_its_values_on_every_rank() -> None:
    tapes = []
    for is_silent in (False, True):
        runner, tape = runner_of(draw_tokens, is_silent)
        before = runner.slots.tokens[1:].clone()
        runner.rehearse(runner.planner.rehearsal(3, 8), ends_all_ways=True)
        assert tape.events.count("wait") == len(USUAL_WANTS)
        assert torch.equal(runner.slots.tokens[1:], before)
        tapes.append(tape.events)
        tape.events.clear()
        runner.rehearse(runner.planner.rehearsal(3, 8))
        assert tape.events.count("wait") == 1
    assert tapes[0] == tapes[1]


class SkippedInputs(GatherTokens):
    """Every token is one further than it is."""

    def gather(self, launch: Launch) -> TokenInputs:
        inputs = super().gather(launch)
        return inputs._replace(token_ids=inputs.token_ids + 1)


def test_what_the_model_reads_is_what_the_part_for_inputs_gathers() -> None:
    runner, _ = runner_of(draw_tokens)
    runner.inputs = SkippedInputs(runner.slots)
    result = values_of(runner.execute(plan_of(PROMPTS)))
    assert result.token_ids.tolist() == [7, 5, 1, 8, 9]
