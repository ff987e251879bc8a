"""A request's own logits processors: Python callables, run on the host."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from vllm.errors import BadRequest
from vllm.sampling_params import LogitsProcessor


class HostProcessor:
    """One callable, with or without the prompt as its first argument."""

    def __init__(self, function: LogitsProcessor) -> None:
        self.function = function
        self.takes_prompt = _num_required(function) == 3

    def __call__(self, prompt: list[int], output: list[int], logits: Tensor) -> Tensor:
        """Logits [V] in place of `logits` [V]; raises BadRequest for anything else."""
        arguments: tuple[Any, ...] = (prompt, output) if self.takes_prompt else (output,)
        result = self.function(*arguments, logits)
        if isinstance(result, torch.Tensor) and result.shape == logits.shape:
            return result
        given = tuple(result.shape) if isinstance(result, torch.Tensor) else type(result).__name__
        raise BadRequest(
            f"logits processor {self.function!r} returned {given}; it must return a tensor of "
            f"shape {tuple(logits.shape)}",
            "logits_processors",
        )


def _num_required(function: LogitsProcessor) -> int:
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # some builtins tell nothing of their parameters
        return 2
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.kind in positional and p.default is inspect.Parameter.empty for p in parameters)
