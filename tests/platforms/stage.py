"""A model that reads another kind of inputs: hidden states, as between the parts of a pipeline."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vllm.device.attention import AttentionMetas
from vllm.device.graphs import Forward, GraphRunner
from vllm.device.launch import Phase, ShapeKey

HIDDEN = 8


class StageInputs(NamedTuple):
    hidden: Tensor  # [T, H] float32
    positions: Tensor  # [T] int32


class Stage(nn.Module):
    """Layers over hidden states; counts how often Python runs them."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        self.layers = nn.ModuleList(nn.Linear(HIDDEN, HIDDEN) for _ in range(2))
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.3, generator=generator)
        self.requires_grad_(requires_grad=False)
        self.calls = 0

    def forward(self, inputs: StageInputs, metas: AttentionMetas) -> Tensor:
        self.calls += 1
        x = inputs.hidden + inputs.positions[:, None] * 0.1
        for layer in self.layers:
            x = x + torch.tanh(layer(x))
        return x


def inputs_of(rows: int, seed: int) -> StageInputs:
    generator = torch.Generator().manual_seed(seed)
    positions = torch.randint(100, (rows,), generator=generator, dtype=torch.int32)
    return StageInputs(torch.randn(rows, HIDDEN, generator=generator), positions)


def check_stage(
    graphs: GraphRunner, device: torch.device, captures: Callable[[int], bool]
) -> Stage:
    """Hidden states of three sizes, each several times, are those of plain torch; -> the stage.

    `captures`: whether the graph runner captures a number of rows beforehand.
    """
    plain, stage = Stage(), Stage().to(device)
    forward = Forward(stage, ())
    sizes = (1, 3, 8)
    for rows in filter(captures, sizes):
        graphs.capture(_key(rows), forward, _on(device, inputs_of(rows, 0)), ())
    for seed in range(1, 5):
        for rows in sizes:
            inputs = inputs_of(rows, seed)
            hidden = graphs.run(_key(rows), forward, _on(device, inputs), ())
            torch.testing.assert_close(hidden.cpu(), plain(inputs, ()))
    return stage


def _key(rows: int) -> ShapeKey:
    return ShapeKey(Phase.DECODE, rows, 1, rows)


def _on(device: torch.device, inputs: StageInputs) -> StageInputs:
    return StageInputs(*(tensor.to(device) for tensor in inputs))
