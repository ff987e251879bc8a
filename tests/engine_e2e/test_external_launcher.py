"""Programs that torchrun starts once per rank write what one rank writes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
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
NOTICED_S = 10.0


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
        check: str,
        model: Path,
        *options: dict[str, Any],
        env: Mapping[str, str] | None = None,
    ) -> None:
        words = ["-m", "tests.engine_e2e.launched", check, str(model), *map(json.dumps, options)]
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


def launch(num_ranks: int, check: str, model: Path, *options: dict[str, Any], **how: Any) -> Launch:
    """On one machine."""
    words = [f"--nproc-per-node={num_ranks}", f"--master-port={get_open_port()}"]
    return Launch(words, check, model, *options, **how)


@pytest.mark.parametrize(
    ("ranks", "stages", "engines"),
    [
        (2, 1, [{"pipeline_depth": 1}, DEEP]),
        (1, 2, [{}, DEEP]),
        (2, 2, [DEEP]),
        pytest.param(4, 1, [{}, DEEP], marks=pytest.mark.product),
        pytest.param(1, 4, [{}, {**DEEP, "pipeline_depth": 4}], marks=pytest.mark.product),
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
    launched = launch(ranks * stages, "tokens", model, *({**shape, **how} for how in engines))
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


def test_processes_of_two_agents_meet_over_tcp(model: Path, expected: list[list[int]]) -> None:
    port = get_open_port()
    agents = [
        Launch(
            ["--nnodes=2", f"--node-rank={node}", "--nproc-per-node=1", f"--master-port={port}"],
            "tokens",
            model,
            {"ranks": 2, "pipeline_depth": 2},
        )
        for node in range(2)
    ]
    lines = [line for agent in agents for line in agent.end()]
    assert [agent.process.returncode for agent in agents] == [0, 0], agents[0].log[-4000:]
    assert [line["rank"] for line in lines] == [0, 1]
    assert all(line["tokens"] == expected for line in lines)


@contextmanager
def alone(model: Path, check: str, *options: dict[str, Any]) -> Iterator[list[subprocess.Popen]]:
    """Two processes as torchrun would start them, and nothing that ends one with the other."""
    port = str(get_open_port())
    words = [check, str(model), *map(json.dumps, options)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.engine_e2e.launched", *words],
            cwd=ROOT,
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
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


def errors_of(processes: list[subprocess.Popen]) -> list[str]:
    found = []
    for process in processes:
        out, log = process.communicate(timeout=HANG_S)
        assert process.returncode == 1, log[-4000:]
        found.append(lines_of(out)[-1]["failed"])
    return found


@pytest.mark.parametrize(
    ("victim", "options"),
    [
        (0, {"ranks": 2, "pipeline_depth": 1}),
        (1, {"ranks": 2, "pipeline_depth": 2}),
        pytest.param(0, {"pipeline_parallel_size": 2}, marks=pytest.mark.product),
        pytest.param(1, {"pipeline_parallel_size": 2}, marks=pytest.mark.product),
    ],
)
def test_the_death_of_a_process_ends_the_others_with_its_name(
    model: Path, victim: int, options: dict[str, Any]
) -> None:
    with alone(model, "on_and_on", options) as processes:
        for process in processes:
            assert process.stdout is not None
            assert "is_running" in process.stdout.readline()
        time.sleep(0.3)
        killed_s = time.time()
        processes[victim].send_signal(signal.SIGKILL)
        survivor = processes[1 - victim]
        out, log = survivor.communicate(timeout=HANG_S)
        ended_s = time.time()
    (line,) = lines_of(out)
    assert f"rank {victim} (process {processes[victim].pid}) is gone" in line["failed"], log[-4000:]
    assert survivor.returncode == 1
    assert ended_s - killed_s < NOTICED_S


@pytest.mark.parametrize(
    ("check", "options", "said"),
    [
        (
            "tokens",
            {"seed_of_rank": [0, 7]},
            ["rank 1 runs with other settings than rank 0: the model settings"] * 2,
        ),
        (
            "other_requests",
            {},
            ["the schedulers differ: step 1 of rank 1 has 1 rows with 3 tokens"] * 2,
        ),
        (
            "fewer_requests",
            {},
            [r") has stopped its engine, and rank 0 is at step", None],
        ),
        (
            "failing_step",
            {},
            ["ValueError: rank 1: planted", "ValueError: planted"],
        ),
    ],
)
def test_what_differs_or_fails_is_an_error_everywhere(
    model: Path, check: str, options: dict[str, Any], said: list[str | None]
) -> None:
    with alone(model, check, {"ranks": 2, **options}) as processes:
        failing = [process for process, text in zip(processes, said, strict=True) if text]
        errors = errors_of(failing)
    for text, error in zip(filter(None, said), errors, strict=True):
        assert text in error


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
    how = {"device": "hpu", "block_size": 16, **options}
    env = emulated.environment(PT_HPU_LAZY_MODE="1")
    launched = launch(num_ranks, "tokens", model, how, env=env)
    lines = launched.end()
    assert launched.process.returncode == 0, launched.log[-4000:]
    assert [line["tokens"] for line in lines] == [expected] * num_ranks
    assert all(f"module {rank}" in launched.log for rank in range(num_ranks))
