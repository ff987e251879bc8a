"""What torchrun says of a process, and what an engine takes from it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from vllm.config.vllm import VllmConfig
from vllm.distributed.launched import Launched
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.engine.async_llm import AsyncLLM
from vllm.engine.llm_engine import LLMEngine
from vllm.errors import ConfigError

Settle = Callable[..., VllmConfig]
Launch = Callable[..., None]

EXTERNAL = {"distributed_executor_backend": "external_launcher"}
TWO = {"tensor_parallel_size": 2, **EXTERNAL}
SECOND = {
    "RANK": 1,
    "WORLD_SIZE": 2,
    "LOCAL_RANK": 1,
    "LOCAL_WORLD_SIZE": 2,
    "MASTER_ADDR": "10.0.0.1",
    "MASTER_PORT": 29500,
}


@pytest.fixture
def launch(monkeypatch: pytest.MonkeyPatch) -> Launch:
    """launch(NAME=value): as the second of two processes, but for these variables."""

    def set_all(**changes: Any) -> None:
        for name, value in {**SECOND, **changes}.items():
            if value is None:
                monkeypatch.delenv(name, raising=False)
            else:
                monkeypatch.setenv(name, str(value))

    return set_all


def test_a_process_knows_its_place_and_node(launch: Launch) -> None:
    launch()
    assert Launched.read() == Launched(1, 2, 1, 2, "10.0.0.1", 29500)
    launch(RANK=5, WORLD_SIZE=8, LOCAL_RANK=1, LOCAL_WORLD_SIZE=4)
    assert (Launched.read().node, Launched.read().num_nodes) == (1, 2)
    launch(LOCAL_WORLD_SIZE=None)
    assert Launched.read().num_nodes == 1


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        (
            {"RANK": None, "MASTER_PORT": ""},
            "RANK, MASTER_PORT is not set, .* torchrun --nproc-per-node=N program.py",
        ),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE='two' must be a whole number"),
        ({"RANK": 2, "LOCAL_RANK": 0}, "RANK=2 is not below WORLD_SIZE=2"),
        ({"LOCAL_RANK": 0}, "RANK=1 LOCAL_RANK=0 .* numbered node after node"),
        ({"WORLD_SIZE": 3}, "WORLD_SIZE=3 LOCAL_WORLD_SIZE=2: .* every node must have as many"),
    ],
)
def test_variables_that_torchrun_does_not_set_so_are_refused(
    launch: Launch, variables: dict[str, Any], said: str
) -> None:
    launch(**variables)
    with pytest.raises(ConfigError, match=said):
        Launched.read()


def test_nodes_are_those_of_torchrun(settle: Settle, launch: Launch) -> None:
    launch(RANK=2, WORLD_SIZE=4, LOCAL_RANK=0)
    parallel = settle(tensor_parallel_size=2, pipeline_parallel_size=2, **EXTERNAL).parallel
    assert (parallel.nnodes, parallel.node_rank) == (2, 1)
    assert (parallel.master_addr, parallel.master_port) == ("10.0.0.1", 29500)
    assert parallel.is_externally_launched


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            {"tensor_parallel_size": 4},
            "WORLD_SIZE=2 processes, and there are 4 ranks .* torchrun --nproc-per-node=4",
        ),
        ({}, "WORLD_SIZE=2 processes, and there are 1 ranks"),
        ({"tensor_parallel_size": 2, "nnodes": 2}, "Leave out --nnodes, --node-rank and"),
        ({"tensor_parallel_size": 2, "node_rank": 1}, "Leave out --nnodes, --node-rank and"),
        ({"tensor_parallel_size": 2, "headless": True}, "Leave out --nnodes, --node-rank and"),
    ],
)
def test_what_does_not_go_with_torchrun_is_refused(
    settle: Settle, launch: Launch, arguments: dict[str, Any], said: str
) -> None:
    launch()
    with pytest.raises(ConfigError, match=said):
        settle(**arguments, **EXTERNAL)


def test_servers_are_refused_whether_or_not_torchrun_has_started_them(settle: Settle) -> None:
    arguments = AsyncEngineArgs(model="m", **TWO)
    with pytest.raises(ConfigError, match=r"every process would be a server .* use mp"):
        arguments.create_engine_config()


def test_a_core_in_a_process_of_its_own_is_refused(
    settle: Settle, launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch()
    config = settle(**TWO)
    with pytest.raises(ConfigError, match=r"processes that torchrun has started\. Use LLM"):
        AsyncLLM.from_vllm_config(config)
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    with pytest.raises(ConfigError, match=r"VLLM_ENABLE_V1_MULTIPROCESSING=1 .* set it to 0"):
        LLMEngine.from_vllm_config(config)
