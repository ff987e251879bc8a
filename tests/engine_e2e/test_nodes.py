"""An engine on two nodes, here processes of this machine, writes what one rank writes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.engine_e2e.test_tensor_parallel import engine, outputs_of
from tests.limits import HANG_S, is_running, wait_until
from tools.tiny_models import random_checkpoint
from vllm import LLM, SamplingParams
from vllm.errors import ConfigError, EngineDeadError
from vllm.utils.network_utils import get_open_port

pytestmark = pytest.mark.engine

ROOT = Path(__file__).resolve().parents[2]
SHARED = {
    "dtype": "float32",
    "max_model_len": 96,
    "max_num_seqs": 3,
    "max_num_batched_tokens": 32,
    "num_gpu_blocks_override": 40,
}


def words_of(options: Mapping[str, Any]) -> list[str]:
    """Of a command line."""
    flags = {f"--{name.replace('_', '-')}": value for name, value in options.items()}
    return [flag if value is True else f"{flag}={value}" for flag, value in flags.items()]


class Node1:
    """`vllm serve --headless` with its copy of the model in a place of its own."""

    def __init__(self, model: Path, **options: Any) -> None:
        self.port = get_open_port()
        flags = {"nnodes": 2, "node_rank": 1, "master_port": self.port, **SHARED, **options}
        command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(model)]
        self.process = subprocess.Popen(
            [*command, "--headless", *words_of(flags)], cwd=ROOT, stderr=subprocess.PIPE, text=True
        )

    def end(self) -> tuple[int, str]:
        """Exit code and log."""
        _, log = self.process.communicate(timeout=HANG_S)
        return self.process.returncode, log


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("nodes")
    ours = random_checkpoint.make("llama", folder / "ours")
    shutil.copytree(ours, folder / "theirs")
    return ours, folder / "theirs"


@pytest.fixture(scope="module")
def expected(models: tuple[Path, Path]) -> list[list[int]]:
    return run(engine(models[0], 1))


def run(llm: LLM) -> list[list[int]]:
    try:
        return outputs_of(llm)
    finally:
        llm.llm_engine.shutdown()


@pytest.fixture(params=[(2, 1), (1, 2), (2, 2)], ids=["tp2", "pp2", "tp2-pp2"])
def nodes(request: pytest.FixtureRequest, models: tuple[Path, Path]) -> Iterator[tuple[LLM, Node1]]:
    ranks, stages = request.param
    options = {"pipeline_parallel_size": stages}
    node_1 = Node1(models[1], tensor_parallel_size=ranks, **options)
    try:
        yield engine(models[0], ranks, nnodes=2, master_port=node_1.port, **options), node_1
    finally:
        node_1.process.kill()
        node_1.process.communicate()


def test_tokens_are_those_of_one_rank(nodes: tuple[LLM, Node1], expected: list[list[int]]) -> None:
    llm, node_1 = nodes
    assert run(llm) == expected
    code, log = node_1.end()
    assert code == 0 and "Node 0 has stopped the engine" in log


@pytest.mark.parametrize("nodes", [(2, 1), (1, 2)], indirect=True, ids=["tp2", "pp2"])
def test_the_death_of_a_rank_that_others_compute_with_names_it(nodes: tuple[LLM, Node1]) -> None:
    """Whoever notices first."""
    llm, node_1 = nodes
    executor = llm.llm_engine.client.core.executor
    wait_until(lambda: all(s.pid for s in executor.ranks.states(0.0)), "signs of all ranks")
    states = executor.ranks.states(0.0)
    timer = threading.Timer(0.3, os.kill, (states[1].pid, signal.SIGKILL))
    timer.start()
    said = r"node 1 \(127\.0\.0\.1\): rank 1 .*was killed by SIGKILL"
    with pytest.raises(EngineDeadError, match=said):
        generate_on(llm)
    timer.join()
    code, log = node_1.end()
    assert code == 1 and "rank 1" in log and "SIGKILL" in log
    wait_until(lambda: not any(is_running(state.pid) for state in states), "the end of all ranks")
    llm.llm_engine.shutdown()


def test_settings_that_differ_are_named_on_both_nodes(models: tuple[Path, Path]) -> None:
    node_1 = Node1(models[1], tensor_parallel_size=2, seed=7)
    said = "node 1 runs with other settings than node 0: the model settings"
    with pytest.raises(ConfigError, match=said):
        engine(models[0], 2, nnodes=2, master_port=node_1.port)
    code, log = node_1.end()
    assert code == 2 and said in log


@pytest.mark.parametrize("nodes", [(2, 1)], indirect=True, ids=["tp2"])
def test_a_node_that_is_told_to_end_ends_the_engine(nodes: tuple[LLM, Node1]) -> None:
    llm, node_1 = nodes
    node_1.process.send_signal(signal.SIGTERM)
    code, log = node_1.end()
    assert code == 0 and "Stopped" in log
    with pytest.raises(EngineDeadError, match=r"node 1 .*was told to end by a signal"):
        generate_on(llm)
    llm.llm_engine.shutdown()


def generate_on(llm: LLM) -> None:
    """Until something ends it."""
    params = SamplingParams(max_tokens=60, ignore_eos=True)
    until_s = time.monotonic() + HANG_S
    while time.monotonic() < until_s:
        llm.generate([{"prompt_token_ids": [5, 6]}], params, use_tqdm=False)
