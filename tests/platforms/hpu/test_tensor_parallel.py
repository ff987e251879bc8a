"""Several ranks on emulated HPUs write what one rank writes, and never lose each other."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.hpu_emulator.conftest import ROOT, Emulated
from tests.limits import HANG_S
from tests.platforms.hpu.test_memory import TOKENS
from tests.platforms.hpu.test_modes import MODES, run
from tools.tiny_models import random_checkpoint
from vllm.messages.functions import LEAVE

pytestmark = pytest.mark.engine

CHUNKS = {"VLLM_ROW_PARALLEL_CHUNKS": "3", "VLLM_ROW_PARALLEL_CHUNK_THRESHOLD": "5"}
FEW_SHAPES = {"num_hidden_layers": 1, "max_num_seqs": 2, "max_num_batched_tokens": 16}
FUNCTIONS = {LEAVE: "1"}
TWO = json.dumps({"tensor_parallel_size": 2})
FOREIGN = {"olmo2", "phi3"}  # run through transformers
NATIVE = [
    arch
    for arch in random_checkpoint.ARCHITECTURES
    if arch not in FOREIGN and not arch.endswith("-rope")  # ranks do not share rotations
]


@pytest.mark.parametrize(
    ("mode", "arch", "size", "options", "variables"),
    [
        ("compile", "llama", 2, FEW_SHAPES, CHUNKS),
        # Has biases after its row-parallel products.
        ("eager", "gpt_bigcode", 2, {"pipeline_depth": 1}, CHUNKS),
        ("lazy", "deepseek_v3", 2, {}, CHUNKS),  # has experts and a shared block
        *(
            pytest.param(mode, arch, size, FEW_SHAPES, {}, marks=pytest.mark.product)
            for arch in NATIVE
            for mode, size in (("graphs", 8), ("compile", 2), ("eager", 2))
        ),
    ],
)
def test_tokens_are_those_of_one_rank(
    emulated: Emulated,
    mode: str,
    arch: str,
    size: int,
    options: dict[str, Any],
    variables: dict[str, str],
) -> None:
    lazy, is_eager = MODES[mode]
    how = json.dumps({"enforce_eager": is_eager, "tensor_parallel_size": size, **options})
    (line,) = run(emulated, lazy, "ranks", "tokens", arch, how, **variables)
    assert line["problem"] == ""


@pytest.mark.parametrize(
    ("mode", "engine"),
    [
        ("graphs", "depth 3, short of blocks"),
        pytest.param("graphs", "processed logprobs", marks=pytest.mark.product),
        pytest.param("compile", "depth 3, short of blocks", marks=pytest.mark.product),
        pytest.param("eager", "depth 3, short of blocks", marks=pytest.mark.product),
    ],
)
def test_whatever_a_request_wants_it_gets_from_two_ranks(
    emulated: Emulated, mode: str, engine: str
) -> None:
    lazy, is_eager = MODES[mode]
    flags = ["--enforce-eager"] * is_eager
    lines = run(emulated, lazy, "ranks", "everything", engine, TWO, *flags)
    assert len(lines) > 15
    assert {line["name"]: line["problem"] for line in lines if line["problem"]} == {}


def test_ranks_launch_the_same_and_compile_nothing_and_never_wait(emulated: Emulated) -> None:
    (result,) = run(emulated, "1", "ranks", "traffic", "300", TWO, **FUNCTIONS)
    assert result["problem"] == ""
    assert result["finished"] > 250 and result["prefix_hits"] > 0 and result["preemptions"] > 0
    first, second = result["num_launches"]
    assert first == second > 300
    assert result["same_shapes"]
    driver, silent = result["ranks"]
    for rank in (driver, silent):
        assert (rank["compilations"], rank["syncs"], rank["fallbacks"]) == (0, 0, 0)
    assert driver["async_reads"] > 0
    assert silent == {**driver, "async_reads": 0}


def test_the_rank_with_the_least_memory_decides_what_all_of_them_capture(
    emulated: Emulated,
) -> None:
    variables = {**FUNCTIONS, "TEST_MEMORIES": "64MiB,3MiB"}
    (result,) = run(emulated, "1", "ranks", "unequal", "20", TWO, **variables)
    first, second = result["graphs"]
    assert first == second and 0 < len(first) < 9, first
    assert result["tokens"] == TOKENS


def test_memory_that_ends_in_the_middle_of_a_launch_ends_the_start(emulated: Emulated) -> None:
    done = program(emulated, "unequal", "20", TWO, TEST_MEMORIES="64MiB,64MiB", TEST_FULL_RANK="1")
    assert done.returncode != 0, done.stdout
    said = done.stderr.splitlines()[-1]
    assert "ConfigError: rank 1: --device hpu: memory ran out while capturing" in said, said
    assert done.stderr.count("Generated 5 prompt buckets") == 1, "each rank logs what all do"
    assert "(prompt, 1, 16, 1)" in said and "Lower --gpu-memory-utilization" in said, said


def program(
    emulated: Emulated, check: str, *arguments: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.platforms.hpu.ranks", check, *arguments],
        env=emulated.environment(**{"PT_HPU_LAZY_MODE": "1", **variables}),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )


@pytest.fixture(scope="module")
def lines(emulated: Emulated, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("meeting")
    found = run(emulated, "0", "meeting", str(folder))
    return sorted(found, key=lambda line: line["rank"])


def test_collectives_give_what_they_must_as_ops_and_traced(lines: list[dict[str, Any]]) -> None:
    assert [line["rank"] for line in lines] == [0, 1]


def test_a_piece_is_multiplied_while_the_one_before_is_summed(lines: list[dict[str, Any]]) -> None:
    first, second = (dict(line["events"]) for line in lines)
    steps = ("product {}", "sum {} begins")
    order = [step.format(i) for i in range(3) for step in steps]
    order += [f"sum {i} is over" for i in range(3)]
    assert [what for what, _ in lines[0]["events"]] == order
    # The first sum cannot end before both ranks have begun it.
    assert first["sum 0 begins"] < first["product 1"] < second["sum 0 begins"]
    assert first["product 1"] < first["sum 0 is over"]


@pytest.fixture
def busy(emulated: Emulated) -> Iterator[Callable[..., None]]:
    """Has a process of nobody's take a module."""
    processes = []

    def take(module: int) -> None:
        code = (
            "import sys, habana_frameworks.torch, torch; torch.zeros(1, device='hpu'); "
            "print('held', flush=True); sys.stdin.read()"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            env=emulated.environment(HLS_MODULE_ID=str(module)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        assert process.stdout is not None and process.stdout.readline() == "held\n"

    yield take
    for process in processes:
        process.communicate("")


def test_a_module_of_another_process_is_named_with_its_rank(
    emulated: Emulated, busy: Callable[..., None]
) -> None:
    busy(1)
    done = program(emulated, "tokens", "llama", TWO)
    assert done.returncode != 0
    assert "ConfigError: rank 1: --device hpu: module 1 cannot be acquired" in done.stderr


ONE = """
from vllm import LLM
from tests.conftest import STORY

llms = [
    LLM(str(STORY), max_model_len=32, max_num_seqs=1, distributed_executor_backend=backend)
    for backend in ("uni", "mp", "uni")
]
"""


def test_engines_of_one_rank_pass_over_modules_that_are_taken(
    emulated: Emulated, busy: Callable[..., None]
) -> None:
    busy(1)
    done = emulated.start(ONE, VLLM_SKIP_WARMUP="1", HABANA_VISIBLE_MODULES="1,2,5")
    assert done.returncode == 0, done.stderr
    found = re.findall(r"rank 0 (?:is )?on module (\d)", done.stderr + done.stdout)
    # Module 5 breaks no pair of visible ones. It serves both engines within the process.
    assert found == ["5", "1", "2"], done.stderr
    assert "Module 1 belongs to another process: rank 0 is on module 2" in done.stderr + done.stdout
