"""Emulated HPUs of two nodes, processes of one machine, write what one rank writes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.hpu_emulator.conftest import Emulated
from tests.limits import HANG_S
from tests.platforms.hpu.test_modes import MODES, run
from tests.platforms.hpu.test_tensor_parallel import FEW_SHAPES, FUNCTIONS

pytestmark = pytest.mark.engine

TWO: dict[str, dict[str, Any]] = {
    "tp2": {"tensor_parallel_size": 2},
    "pp2": {"pipeline_parallel_size": 2},
    "tp2-pp2": {"tensor_parallel_size": 2, "pipeline_parallel_size": 2},
}
SMALL = {**FEW_SHAPES, "num_hidden_layers": 2}
IN_EVERY_RUN = {("graphs", "tp2")}  # stages: tests/engine_e2e/test_namespaces.py


@pytest.mark.parametrize(
    ("mode", "ranks"),
    [
        pytest.param(
            mode, ranks, marks=[] if (mode, ranks) in IN_EVERY_RUN else [pytest.mark.product]
        )
        for mode in ("graphs", "compile", "eager")
        for ranks in TWO
    ],
)
def test_tokens_are_those_of_one_rank_and_nothing_is_compiled_for_them(
    emulated: Emulated, mode: str, ranks: str
) -> None:
    lazy, is_eager = MODES[mode]
    how = json.dumps({"enforce_eager": is_eager, **TWO[ranks], **SMALL})
    variables = {**FUNCTIONS, "VLLM_ENGINE_READY_TIMEOUT_S": str(int(HANG_S))}
    (line,) = run(emulated, lazy, "nodes", "engine", "llama", how, **variables)
    assert line["problem"] == "" and line["code"] == 0
    for rank in line["ranks"]:
        assert (rank["compilations"], rank["syncs"], rank["fallbacks"]) == (0, 0, 0)
    num_ranks = 4 if ranks == "tp2-pp2" else 2
    assert len(line["ranks"]) == (0 if is_eager else num_ranks)
