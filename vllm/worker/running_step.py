"""What a rank answers about a step: the values that its launches produce, or nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from vllm.device.device import Device, HostCopy
from vllm.messages.step import Int32Array, LogprobArrays, PromptLogprobs, StepResult
from vllm.sample.interface import LogprobTensors, SamplerOutput
from vllm.worker.draws import Draws

_NO_TOKENS: Final = np.empty(0, np.int32)


class LogprobCopies:
    """Log-probabilities on their way to the host."""

    def __init__(self, device: Device, pieces: Sequence[LogprobTensors]) -> None:
        self._copies = [[device.download(tensor) for tensor in piece] for piece in pieces]

    def wait(self) -> LogprobArrays:
        pieces = [[copy.wait() for copy in piece] for piece in self._copies]
        if len(pieces) == 1:
            return LogprobArrays(*pieces[0])
        return LogprobArrays(*(np.concatenate(parts) for parts in zip(*pieces, strict=True)))


@dataclass(frozen=True, slots=True)
class Drawn:
    """What one launch drew: S rows, of which `picked_np` belong to rows of the plan."""

    plan_rows_np: Int32Array  # [D]
    picked_np: Int32Array  # [D]
    token_ids: HostCopy  # [S]
    logprobs: LogprobCopies | None

    @classmethod
    def download(cls, device: Device, draws: Draws, sampled: SamplerOutput) -> Drawn:
        """Start copying what was sampled for `draws` to the host."""
        return cls(
            draws.plan_rows_np,
            draws.picked_np,
            device.download(sampled.token_ids),
            None if sampled.logprobs is None else LogprobCopies(device, [sampled.logprobs]),
        )


class StepAnswer(Protocol):
    """Collects what the launches of a step produce, in order, and then the failures."""

    def add_drawn(self, draws: Draws, sampled: SamplerOutput) -> None: ...

    def add_prompt_logprobs(self, row: int, start: int, pieces: Sequence[LogprobTensors]) -> None:
        """Take the values of plan row `row` from position `start` on, in pieces."""
        ...

    def add_failures(self, failures: Mapping[int, str]) -> None:
        """Take the reasons, by slot, of requests whose own code failed."""
        ...

    def result(self) -> StepResult | None:
        """Wait for the values; None at once if this rank answers without."""
        ...


class SilentStep:
    """The answer of ranks other than the driver: nothing is copied to the host, nothing waits.

    A unit of device work ends where a download would end it, while its results live: what a unit
    consists of and what outlives it is a part of what devices compile.
    """

    def __init__(self, device: Device, step: int) -> None:
        self._device = device

    def add_drawn(self, draws: Draws, sampled: SamplerOutput) -> None:
        self._device.step_boundary()

    def add_prompt_logprobs(self, row: int, start: int, pieces: Sequence[LogprobTensors]) -> None:
        self._device.step_boundary()

    def add_failures(self, failures: Mapping[int, str]) -> None:
        pass

    def result(self) -> None:
        return None


class RunningStep:
    """The driver's answer: all values, on their way to the host while the step runs."""

    def __init__(self, device: Device, step: int) -> None:
        self._device = device
        self._step = step
        self._drawn: list[Drawn] = []
        self._prompt_logprobs: list[tuple[int, int, LogprobCopies]] = []
        self._failures: dict[int, str] = {}

    def add_drawn(self, draws: Draws, sampled: SamplerOutput) -> None:
        self._drawn.append(Drawn.download(self._device, draws, sampled))

    def add_prompt_logprobs(self, row: int, start: int, pieces: Sequence[LogprobTensors]) -> None:
        self._prompt_logprobs.append((row, start, LogprobCopies(self._device, pieces)))

    def add_failures(self, failures: Mapping[int, str]) -> None:
        self._failures.update(failures)

    def result(self) -> StepResult:
        token_ids, logprobs = self._in_plan_order()
        return StepResult(
            step=self._step,
            token_ids=token_ids,
            logprobs=logprobs,
            prompt_logprobs=tuple(
                PromptLogprobs(row, start, copies.wait())
                for row, start, copies in self._prompt_logprobs
            ),
            failures=self._failures,
        )

    def _in_plan_order(self) -> tuple[np.ndarray, LogprobArrays | None]:
        if not self._drawn:
            return _NO_TOKENS, None
        token_ids = [drawn.token_ids.wait()[drawn.picked_np] for drawn in self._drawn]
        logprobs = [_picked(drawn) for drawn in self._drawn]
        if len(self._drawn) == 1:
            return token_ids[0], logprobs[0]
        order = np.argsort(np.concatenate([drawn.plan_rows_np for drawn in self._drawn]))
        joined = _joined(logprobs, [len(ids) for ids in token_ids], order)
        return np.concatenate(token_ids)[order], joined


def _picked(drawn: Drawn) -> LogprobArrays | None:
    if drawn.logprobs is None:
        return None
    values, picked = drawn.logprobs.wait(), drawn.picked_np
    return LogprobArrays(values.token_ids[picked], values.logprobs[picked], values.ranks[picked])


def _joined(
    parts: Sequence[LogprobArrays | None], lengths: Sequence[int], order: np.ndarray
) -> LogprobArrays | None:
    """Parts of different widths in one; rows of a part that has none, and columns, are zeros."""
    present = [part for part in parts if part is not None]
    if not present:
        return None
    shape = (sum(lengths), max(part.token_ids.shape[1] for part in present))
    token_ids, logprobs = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
    ranks = np.zeros(shape[0], np.int32)
    begin = 0
    for part, length in zip(parts, lengths, strict=True):
        if part is not None:
            rows, columns = slice(begin, begin + length), slice(part.token_ids.shape[1])
            token_ids[rows, columns] = part.token_ids
            logprobs[rows, columns] = part.logprobs
            ranks[rows] = part.ranks
        begin += length
    return LogprobArrays(token_ids[order], logprobs[order], ranks[order])
