"""Programs that torchrun starts once per rank write what one rank writes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.engine_e2e.test_tensor_parallel import engine, outputs_of
from tests.hpu_emulator.conftest import Emulated, emulated
from tests.limits import HANG_S
from tools.tiny_models import random_checkpoint
from vllm.utils.network_utils import get_open_port

pytestmark = pytest.mark.engine

__all__ = ["emulated"]  # a fixture

ROOT = Path(__file__).resolve().parents[2]
DEEP = {"pipeline_depth": 3, "num_gpu_blocks_override": 9}  # short of blocks
AGENT = ["-m", "torch.distributed.run", "--master-addr=127.0.0.1"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_checkpoint.make("llama", tmp_path_factory.mktemp("launched") / "llama")


@pytest.fixture(scope="module")
def expected(model: Path) -> list[list[int]]:
    llm = engine(model, 1)
    try:
        return outputs_of(llm)
    finally:
        llm.llm_engine.shutdown()


class Launch:
    """One agent of torchrun, and what its processes print."""

    def __init__(
        self,
        how: list[str],
        words: list[str],
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *AGENT, *how, *words],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def end(self) -> list[dict[str, Any]]:
        try:
            out, self.log = self.process.communicate(timeout=HANG_S)
        finally:
            self.process.kill()
        return lines_of(out)


def lines_of(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines() if line.startswith("{")]


def program(model: Path, *checks: tuple[str, dict[str, Any]]) -> list[str]:
    words = ["-m", "tests.engine_e2e.launched", str(model)]
    for check, options in checks:
        words += [check, json.dumps(options)]
    return words


def launch(num_ranks: int, words: list[str], **how: Any) -> Launch:
    """On one machine."""
    flags = [f"--nproc-per-node={num_ranks}", f"--master-port={get_open_port()}"]
    return Launch(flags, words, **how)


@pytest.mark.parametrize(
    ("ranks", "stages", "engines"),
    [
        (2, 1, [{"pipeline_depth": 1}, DEEP]),
        (1, 2, [DEEP]),
        pytest.param(1, 2, [{}], marks=pytest.mark.product),
        pytest.param(2, 2, [DEEP], marks=pytest.mark.product),
        pytest.param(4, 1, [{}, DEEP], marks=pytest.mark.product),
        pytest.param(1, 1, [{}, DEEP], marks=pytest.mark.product),
    ],
)
def test_tokens_are_those_of_one_rank(
    model: Path,
    expected: list[list[int]],
    ranks: int,
    stages: int,
    engines: list[dict[str, Any]],
) -> None:
    """Of several engines too, one after the other in the same processes."""
    shape = {"ranks": ranks, "pipeline_parallel_size": stages}
    words = program(model, *(("tokens", {**shape, **how}) for how in engines))
    launched = launch(ranks * stages, words)
    lines = launched.end()
    assert launched.process.returncode == 0, launched.log[-4000:]
    world_size = ranks * stages
    assert len(lines) == world_size * len(engines)
    for line in lines:
        assert line["tokens"] == expected
        assert line["pings"] == [line["rank"]], "of this process's rank"
        assert line["default_group"] == [line["rank"], world_size]
        assert line["num_ranks"] == world_size
    if DEEP in engines:
        assert all(line["preemptions"] for line in lines[-world_size:])


@pytest.mark.product
def test_processes_of_two_agents_meet_over_tcp(model: Path, expected: list[list[int]]) -> None:
    port = get_open_port()
    agents = [
        Launch(
            ["--nnodes=2", f"--node-rank={node}", "--nproc-per-node=1", f"--master-port={port}"],
            program(model, ("tokens", {"ranks": 2, "pipeline_depth": 2})),
        )
        for node in range(2)
    ]
    lines = [line for agent in agents for line in agent.end()]
    assert [agent.process.returncode for agent in agents] == [0, 0], agents[0].log[-4000:]
    assert [line["rank"] for line in lines] == [0, 1]
    assert all(line["tokens"] == expected for line in lines)


@contextmanager
def alone(words: list[str]) -> Iterator[list[subprocess.Popen[str]]]:
    """Two processes as torchrun would start them, and nothing that ends one with the other."""
    given = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(get_open_port())}
    processes = [
        subprocess.Popen(
            [sys.executable, *words],
            cwd=ROOT,
            env={
                **os.environ,
                **given,
                "OMP_NUM_THREADS": "1",
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


@pytest.mark.parametrize(
    ("victim", "options"),
    [
        (1, {"ranks": 2, "pipeline_depth": 2}),
        pytest.param(0, {"ranks": 2, "pipeline_depth": 1}, marks=pytest.mark.product),
        pytest.param(0, {"pipeline_parallel_size": 2}, marks=pytest.mark.product),
        pytest.param(1, {"pipeline_parallel_size": 2}, marks=pytest.mark.product),
    ],
)
def test_the_death_of_a_process_ends_the_others_with_its_name(
    model: Path, victim: int, options: dict[str, Any]
) -> None:
    with alone(program(model, ("on_and_on", options))) as processes:
        for process in processes:
            assert process.stdout is not None
            assert "is_running" in process.stdout.readline()
        processes[victim].send_signal(signal.SIGKILL)
        survivor = processes[1 - victim]
        out, log = survivor.communicate(timeout=HANG_S)
    (line,) = lines_of(out)
    assert f"rank {victim} (process {processes[victim].pid}) is gone" in line["failed"], log[-4000:]
    assert survivor.returncode == 1


def test_what_differs_or_fails_is_an_error_everywhere(model: Path) -> None:
    """And of one engine only: the next one works, also where one process is at it before."""
    checks = [
        ("tokens", {"seed_of_rank": [0, 7], "linger_s_of_rank": {"0": 3.0}}),
        ("other_requests", {}),
        ("failing_step", {"pipeline_depth": 2}),
        ("fewer_requests", {}),
        ("tokens", {}),
    ]
    words = program(model, *((check, {"ranks": 2, **how}) for check, how in checks))
    with alone(words) as processes:
        ends = [process.communicate(timeout=HANG_S) for process in processes]
    first, second = (lines_of(out) for out, _ in ends)
    of_first, of_second = ([one.get("failed", "") for one in some] for some in (first, second))
    for settings in (of_first[0], of_second[0]):
        assert "rank 1 runs with other settings than rank 0: the model settings" in settings
    for requests in (of_first[1], of_second[1]):
        assert "the schedulers differ: step 1 of rank 1 has 1 rows with 3 tokens" in requests
    assert of_first[2].endswith("ValueError: rank 1: planted")
    assert of_second[2].endswith("ValueError: planted")
    assert f"rank 1 (process {processes[1].pid}) has stopped its engine" in of_first[3]
    assert of_first[4:] == of_second[3:] == [""], "rank 1 has made all of its requests"
    assert first[4]["tokens"] == second[3]["tokens"]


@pytest.mark.parametrize(
    "options",
    [
        {"ranks": 2},
        pytest.param({"pipeline_parallel_size": 2}, marks=pytest.mark.product),
        pytest.param({"ranks": 2, "pipeline_parallel_size": 2}, marks=pytest.mark.product),
    ],
    ids=["tp2", "pp2", "tp2-pp2"],
)
def test_emulated_hpus_write_what_one_cpu_writes(
    emulated: Emulated, model: Path, expected: list[list[int]], options: dict[str, Any]
) -> None:
    num_ranks = options.get("ranks", 1) * options.get("pipeline_parallel_size", 1)
    few_shapes = {"block_size": 16, "max_num_seqs": 2, "max_num_batched_tokens": 16}
    how = {"device": "hpu", **few_shapes, **options}
    env = emulated.environment(PT_HPU_LAZY_MODE="1")
    launched = launch(num_ranks, program(model, ("tokens", how)), env=env)
    lines = launched.end()
    assert launched.process.returncode == 0, launched.log[-4000:]
    assert [line["tokens"] for line in lines] == [expected] * num_ranks
    assert all(f"module {rank}" in launched.log for rank in range(num_ranks))
