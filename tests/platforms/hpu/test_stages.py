"""Stages of a pipeline on emulated HPUs write what one rank writes, and compile nothing for it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hpu_emulator.conftest import Emulated
from tests.platforms.hpu.test_memory import TOKENS
from tests.platforms.hpu.test_modes import MODES, run
from tests.platforms.hpu.test_tensor_parallel import FEW_SHAPES, FUNCTIONS, NATIVE

pytestmark = pytest.mark.engine

STAGES: dict[str, Any] = {"pipeline_parallel_size": 2}
THREE: dict[str, Any] = {"pipeline_parallel_size": 3}
OF_TWO: dict[str, Any] = {**STAGES, "tensor_parallel_size": 2}
LAYOUTS = (STAGES, THREE, OF_TWO)
# Layers are traced one by one: there must be few of them, and few shapes.
TRACED = {**FEW_SHAPES, "num_hidden_layers": 2}


def products() -> Iterator[Any]:
    """Every architecture in every mode and layout."""
    for mode, arch, layout in itertools.product(("graphs", "compile", "eager"), NATIVE, LAYOUTS):
        layers = layout["pipeline_parallel_size"]
        options = layout if mode == "graphs" else {**layout, **TRACED, "num_hidden_layers": layers}
        ranks = layout.get("tensor_parallel_size", 1)
        name = f"{mode}, {arch}, {layers} stages of {ranks}"
        yield pytest.param(mode, arch, options, id=name, marks=pytest.mark.product)


@pytest.mark.parametrize(
    ("mode", "arch", "options"),
    [
        ("graphs", "deepseek_v3", STAGES),  # has a dense layer and layers of experts
        ("graphs", "gpt_bigcode", STAGES),  # embeds positions, and its head is tied
        ("compile", "llama", {**STAGES, **TRACED}),
        ("eager", "gemma2", THREE),
        ("graphs", "llama", OF_TWO),
        *products(),
    ],
)
def test_tokens_are_those_of_one_rank(
    emulated: Emulated, mode: str, arch: str, options: dict[str, Any]
) -> None:
    lazy, is_eager = MODES[mode]
    how = json.dumps({"enforce_eager": is_eager, **options})
    (line,) = run(emulated, lazy, "ranks", "tokens", arch, how)
    assert line["problem"] == ""


@pytest.mark.parametrize(
    ("mode", "engine", "layout"),
    [
        ("graphs", "depth 3, short of blocks", STAGES),
        *(
            pytest.param(mode, engine, STAGES, marks=pytest.mark.product)
            for mode in ("graphs", "compile", "eager")
            for engine in ("depth 3, short of blocks", "depth 2", "processed logprobs")
            if (mode, engine) != ("graphs", "depth 3, short of blocks")
        ),
        *(
            pytest.param(mode, "depth 3, short of blocks", layout, marks=pytest.mark.product)
            for mode in ("graphs", "compile", "eager")
            for layout in (THREE, OF_TWO)
        ),
    ],
)
def test_whatever_a_request_wants_it_gets_from_stages(
    emulated: Emulated, mode: str, engine: str, layout: dict[str, Any]
) -> None:
    lazy, is_eager = MODES[mode]
    flags = ["--enforce-eager"] * is_eager
    # Prompts are cut into pieces that stages compute at the same time.
    how = {**layout, "pipeline_depth": 3, "pipeline_chunk_tokens": 16}
    lines = run(emulated, lazy, "ranks", "everything", engine, json.dumps(how), *flags)
    assert len(lines) > 15
    assert {line["name"]: line["problem"] for line in lines if line["problem"]} == {}


@pytest.mark.parametrize(
    ("mode", "num_requests"),
    [("graphs", 300), pytest.param("compile", 100, marks=pytest.mark.product)],
)
def test_stages_launch_the_same_and_compile_nothing_and_never_wait(
    emulated: Emulated, mode: str, num_requests: int
) -> None:
    # Prompts are cut into pieces that stages compute at the same time.
    arguments = ("traffic", str(num_requests), json.dumps({**STAGES, "pipeline_chunk_tokens": 8}))
    (result,) = run(emulated, MODES[mode][0], "ranks", *arguments, **FUNCTIONS)
    assert result["problem"] == ""
    assert result["finished"] > 0.8 * num_requests and result["prefix_hits"] > 0
    first, second = result["num_launches"]
    assert first == second > num_requests
    assert result["same_shapes"]
    for rank in result["ranks"]:
        assert (rank["compilations"], rank["syncs"], rank["fallbacks"]) == (0, 0, 0)
    passing, drawing = result["ranks"]
    assert (passing["draws"], passing["async_reads"]) == (0, 0)
    assert drawing["draws"] == drawing["async_reads"] > 0


def test_a_stage_with_little_memory_captures_less_and_the_other_does_not(
    emulated: Emulated,
) -> None:
    variables = {**FUNCTIONS, "TEST_MEMORIES": "64MiB,4MiB"}
    (result,) = run(emulated, "1", "ranks", "unequal", "20", json.dumps(STAGES), **variables)
    first, second = result["graphs"]
    assert set(second) < set(first), (first, second)
    assert result["tokens"] == TOKENS


@pytest.mark.parametrize("lazy", ["0", "1"])
def test_ranks_of_a_stage_compute_together_and_stages_get_what_was_sent(
    emulated: Emulated, tmp_path: Path, lazy: str
) -> None:
    lines = run(emulated, lazy, "meeting", str(tmp_path), "3")
    assert sorted(line["rank"] for line in lines) == list(range(6))


ONE = """
from tests.conftest import STORY
from vllm import LLM

LLM(str(STORY), max_model_len=32, max_num_seqs=1, pipeline_parallel_size=2)
"""


def test_graphs_of_stages_without_the_tensor_cache_are_refused(emulated: Emulated) -> None:
    done = emulated.start(ONE, PT_HPU_LAZY_MODE="1", PT_HPUGRAPH_DISABLE_TENSOR_CACHE="true")
    assert done.returncode != 0
    said = done.stderr.splitlines()[-1]
    assert "ConfigError: PT_HPUGRAPH_DISABLE_TENSOR_CACHE=true: HPU graphs of a pipeline" in said
