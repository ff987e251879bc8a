"""Experts that move between emulated HPUs: what is written stays the same, and nothing compiles."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.hpu_emulator.conftest import Emulated
from tests.platforms.hpu.test_modes import MODES, run
from tests.platforms.hpu.test_tensor_parallel import FEW_SHAPES, FUNCTIONS

pytestmark = pytest.mark.engine

TWO: dict[str, Any] = {
    "tensor_parallel_size": 2,
    "enable_expert_parallel": True,
    "enable_eplb": True,
    "num_redundant_experts": 3,
    "eplb_step_interval": 6,
    "eplb_window_size": 4,
}


@pytest.mark.parametrize(
    ("mode", "arch", "options"),
    [
        ("graphs", "qwen3_moe", TWO),
        # The second of two layers has experts.
        pytest.param(
            "compile",
            "deepseek_v3",
            {**TWO, **FEW_SHAPES, "num_hidden_layers": 2},
            marks=pytest.mark.product,
        ),
        pytest.param("lazy", "mixtral", TWO, marks=pytest.mark.product),
        pytest.param("eager", "mixtral", TWO, marks=pytest.mark.product),
    ],
)
def test_tokens_are_those_of_one_rank(
    emulated: Emulated, mode: str, arch: str, options: dict[str, Any]
) -> None:
    lazy, is_eager = MODES[mode]
    how = json.dumps({"enforce_eager": is_eager, **options})
    (line,) = run(emulated, lazy, "ranks", "tokens", arch, how)
    assert line["problem"] == ""


@pytest.mark.parametrize("mode", ["graphs", pytest.param("compile", marks=pytest.mark.product)])
def test_experts_move_in_traffic_and_nothing_is_compiled_or_waited_for(
    emulated: Emulated, mode: str
) -> None:
    how = TWO if mode == "graphs" else {**TWO, **FEW_SHAPES}
    arguments = ("traffic_of", "qwen3_moe", "60", json.dumps(how))
    (result,) = run(emulated, MODES[mode][0], "ranks", *arguments, **FUNCTIONS)
    assert result["problem"] == ""
    assert result["finished"] > 40
    assert result["same_shapes"]
    for rank in result["ranks"]:
        assert rank["moved"]
        assert (rank["compilations"], rank["syncs"], rank["fallbacks"]) == (0, 0, 0)
