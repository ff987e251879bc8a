"""Copies on emulated HPUs that share experts write what one rank writes, and compile nothing."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.engine_e2e.test_nodes import SHARED
from tests.engine_e2e.test_nodes import run as run_alone
from tests.engine_e2e.test_spread_servers import numbered, program, said
from tests.engine_e2e.test_tensor_parallel import engine
from tests.hpu_emulator.conftest import Emulated
from tests.platforms.hpu.test_modes import MODES, run
from tests.platforms.hpu.test_tensor_parallel import FEW_SHAPES, FUNCTIONS
from tools.tiny_models import random_checkpoint

pytestmark = pytest.mark.engine

COPIES: dict[str, Any] = {"data_parallel_size": 2, "enable_expert_parallel": True}
MIXTURES = ("mixtral", "qwen3_moe", "deepseek_v3")


def products() -> Iterator[Any]:
    """In every mode, copies of one rank and of two."""
    for mode, arch, ranks in itertools.product(("graphs", "compile", "eager"), MIXTURES, (1, 2)):
        options = {**COPIES, **FEW_SHAPES, "num_hidden_layers": 2, "tensor_parallel_size": ranks}
        name = f"{mode}, {arch}, 2 copies of {ranks}"
        yield pytest.param(mode, arch, options, id=name, marks=pytest.mark.product)


@pytest.mark.parametrize(
    ("mode", "arch", "options"), [("graphs", "deepseek_v3", {**COPIES, **FEW_SHAPES}), *products()]
)
def test_tokens_are_those_of_one_rank(
    emulated: Emulated, mode: str, arch: str, options: dict[str, Any]
) -> None:
    lazy, is_eager = MODES[mode]
    how = json.dumps({"enforce_eager": is_eager, **options})
    (line,) = run(emulated, lazy, "ranks", "tokens", arch, how)
    assert line["problem"] == ""


@pytest.mark.parametrize(
    "ranks", [pytest.param(1), pytest.param(2, marks=pytest.mark.product)], ids=str
)
def test_traffic_compiles_nothing_and_never_waits_whoever_has_work(
    emulated: Emulated, ranks: int
) -> None:
    """At times one copy has nothing to do."""
    how = json.dumps({**COPIES, "tensor_parallel_size": ranks})
    arguments = ("traffic_of_copies", "qwen3_moe", "60", how)
    (result,) = run(emulated, "1", "ranks", *arguments, **FUNCTIONS)
    assert result["finished"] > 45
    first, *others = result["num_launches"]
    assert first > 60 and all(abs(first - other) <= 1 for other in others)
    assert result["same_shapes"]
    assert all(rank["num_dummies"] > 0 for rank in result["ranks"])
    for rank in result["ranks"]:
        assert (rank["compilations"], rank["syncs"], rank["fallbacks"]) == (0, 0, 0)


@pytest.mark.product
@pytest.mark.parametrize("mode", ["graphs", "compile", "eager"])
def test_programs_write_what_one_rank_writes(emulated: Emulated, mode: str, tmp_path: Path) -> None:
    lazy, is_eager = MODES[mode]
    path = random_checkpoint.make("qwen3_moe", tmp_path / "model", num_hidden_layers=2)
    how = {**SHARED, "model": str(path), "device": "hpu", "block_size": 16, "max_num_seqs": 2}
    how |= {"enable_expert_parallel": True, "enforce_eager": is_eager}
    environment = emulated.environment(PT_HPU_LAZY_MODE=lazy)
    with ExitStack() as all_programs:
        programs = [
            all_programs.enter_context(program(what, how, **{**environment, **variables}))
            for what, variables in zip(("tokens", "twice"), numbered(2), strict=True)
        ]
        found = [said(each)["tokens"] for each in programs]
    assert found == [run_alone(engine(path, 1))] * 2
