"""Tokens drawn by the launches of a step, on their way to the host, and joined there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from vllm.device.device import HostCopy
from vllm.messages.step import Int32Array, LogprobArrays, PromptLogprobs, StepResult
from vllm.sample.interface import LogprobTensors, SamplerOutput
from vllm.worker.ends.draws import Draws
from vllm.worker.ends.launch_end import Download

_NO_TOKENS: Final = np.empty(0, np.int32)


class LogprobCopies:
    """Log-probabilities on their way to the host."""

    def __init__(self, download: Download, pieces: Sequence[LogprobTensors]) -> None:
        self._copies = [[download(tensor) for tensor in piece] for piece in pieces]

    def wait(self) -> LogprobArrays:
        pieces = [[copy.wait() for copy in piece] for piece in self._copies]
        if len(pieces) == 1:
            return LogprobArrays(*pieces[0])
        return LogprobArrays(*(np.concatenate(parts) for parts in zip(*pieces, strict=True)))


@dataclass(frozen=True, slots=True)
class ExplainedPrompt:
    """Log-probabilities of the prompt tokens of one row of the plan."""

    plan_row: int
    start: int  # position of the first token
    logprobs: LogprobCopies


@dataclass(frozen=True, slots=True)
class DrawnTokens:
    """S drawn tokens, of which `picked_np` belong to rows of the plan."""

    plan_rows_np: Int32Array  # [D]
    picked_np: Int32Array  # [D]
    token_ids: HostCopy  # [S]
    logprobs: LogprobCopies | None

    @classmethod
    def download(cls, download: Download, draws: Draws, sampled: SamplerOutput) -> DrawnTokens:
        """Start copying what was sampled for `draws` to the host."""
        return cls(
            draws.plan_rows_np,
            draws.picked_np,
            download(sampled.token_ids),
            None if sampled.logprobs is None else LogprobCopies(download, [sampled.logprobs]),
        )


@dataclass(frozen=True, slots=True)
class Drawn:
    """The ending of a launch: what it drew, and what it explained of prompts."""

    tokens: DrawnTokens | None
    prompts: Sequence[ExplainedPrompt] = ()


class DrawnStep:
    """The answer to a step: the endings of its launches, joined in order of the plan's rows."""

    def __init__(self, step: int, endings: Sequence[Drawn], failures: dict[int, str]) -> None:
        self._step = step
        self._tokens = [ending.tokens for ending in endings if ending.tokens is not None]
        self._prompts = [prompt for ending in endings for prompt in ending.prompts]
        self._failures = failures

    def result(self) -> StepResult:
        token_ids, logprobs = self._in_plan_order()
        return StepResult(
            step=self._step,
            token_ids=token_ids,
            logprobs=logprobs,
            prompt_logprobs=tuple(
                PromptLogprobs(prompt.plan_row, prompt.start, prompt.logprobs.wait())
                for prompt in self._prompts
            ),
            failures=self._failures,
        )

    def _in_plan_order(self) -> tuple[np.ndarray, LogprobArrays | None]:
        parts = self._tokens
        if not parts:
            return _NO_TOKENS, None
        token_ids = [part.token_ids.wait()[part.picked_np] for part in parts]
        logprobs = [_picked(part) for part in parts]
        if len(parts) == 1:
            return token_ids[0], logprobs[0]
        order = np.argsort(np.concatenate([part.plan_rows_np for part in parts]))
        joined = _joined(logprobs, [len(ids) for ids in token_ids], order)
        return np.concatenate(token_ids)[order], joined


def _picked(part: DrawnTokens) -> LogprobArrays | None:
    if part.logprobs is None:
        return None
    values, picked = part.logprobs.wait(), part.picked_np
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
