"""Ranks on emulated HPUs that have whole experts write what one rank writes, and compile nothing
for whatever is routed to them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.hpu_emulator.conftest import Emulated
from tests.platforms.hpu.test_modes import MODES, run
from tests.platforms.hpu.test_tensor_parallel import FEW_SHAPES, FUNCTIONS

pytestmark = pytest.mark.engine

MIXTURES = ("mixtral", "qwen3_moe", "deepseek_v2", "deepseek_v2_lite", "deepseek_v3")
TWO: dict[str, Any] = {"tensor_parallel_size": 2, "enable_expert_parallel": True}
DEALT = {"expert_placement_strategy": "round_robin"}
FIVE = {"shape": {"num_local_experts": 5}}
SLICES = {"MAX_EXPERTS_PER_SLICE": "1"}


def products() -> Iterator[Any]:
    """Every architecture with experts in every mode, with both placements, on two and four
    ranks."""
    for mode, arch, size, dealt in itertools.product(
        ("graphs", "compile", "eager"), MIXTURES, (2, 4), ({}, DEALT)
    ):
        few = {} if mode == "graphs" else {**FEW_SHAPES, "num_hidden_layers": 2}
        options = {**TWO, "tensor_parallel_size": size, **dealt, **few}
        name = f"{mode}, {arch}, {size} ranks, {dealt.get('expert_placement_strategy', 'linear')}"
        yield pytest.param(mode, arch, options, {}, id=name, marks=pytest.mark.product)


@pytest.mark.parametrize(
    ("mode", "arch", "options", "variables"),
    [
        ("graphs", "mixtral", {**TWO, **DEALT, **FIVE}, SLICES),
        *products(),
    ],
)
def test_tokens_are_those_of_one_rank(
    emulated: Emulated,
    mode: str,
    arch: str,
    options: dict[str, Any],
    variables: dict[str, str],
) -> None:
    lazy, is_eager = MODES[mode]
    how = json.dumps({"enforce_eager": is_eager, **options})
    (line,) = run(emulated, lazy, "ranks", "tokens", arch, how, **variables)
    assert line["problem"] == ""


def test_traffic_compiles_nothing_and_never_waits_whatever_is_routed_where(
    emulated: Emulated,
) -> None:
    arguments = ("traffic_of", "qwen3_moe", "100", json.dumps(TWO))
    (result,) = run(emulated, "1", "ranks", *arguments, **FUNCTIONS)
    assert result["problem"] == ""
    assert result["finished"] > 75
    first, second = result["num_launches"]
    assert first == second > 100
    assert result["same_shapes"]
    for rank in result["ranks"]:
        assert (rank["compilations"], rank["syncs"], rank["fallbacks"]) == (0, 0, 0)
