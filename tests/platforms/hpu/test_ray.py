"""Emulated HPUs of two machines of a Ray cluster write what one rank writes."""

from __future__ import annotations

import json

import pytest

from tests.hpu_emulator.conftest import Emulated
from tests.limits import HANG_S
from tests.platforms.hpu.test_modes import MODES, run
from tests.platforms.hpu.test_nodes import SMALL, TWO
from tests.platforms.hpu.test_tensor_parallel import FUNCTIONS

pytest.importorskip("ray", reason="ray is not installed")
pytestmark = pytest.mark.engine


@pytest.mark.parametrize(
    ("mode", "ranks"),
    [
        pytest.param(mode, ranks, marks=pytest.mark.product)
        for mode in ("graphs", "compile", "eager")
        for ranks in ("tp2", "pp2")
    ],
)
def test_ranks_have_the_modules_that_ray_gives_and_compile_nothing_in_steps(
    emulated: Emulated, mode: str, ranks: str
) -> None:
    lazy, is_eager = MODES[mode]
    how = json.dumps({"enforce_eager": is_eager, **TWO[ranks], **SMALL})
    variables = {**FUNCTIONS, "VLLM_ENGINE_READY_TIMEOUT_S": str(int(HANG_S))}
    (line,) = run(emulated, lazy, "ray_ranks", "engine", "llama", how, **variables)
    assert line["problem"] == ""
    for rank in line["ranks"]:
        assert (rank["compilations"], rank["syncs"], rank["fallbacks"]) == (0, 0, 0)
    assert len(line["ranks"]) == (0 if is_eager else 2)
