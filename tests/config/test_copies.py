"""Which copies of the model a server has."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from vllm.config.parallel import ParallelConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.errors import ConfigError


@pytest.mark.parametrize(
    ("options", "size", "local", "first", "served"),
    [
        ({}, 1, 1, 0, 1),
        ({"data_parallel_size": 3}, 3, 3, 0, 3),
        ({"data_parallel_size": 3, "data_parallel_size_local": 3}, 3, 3, 0, 3),
        ({"data_parallel_size": 4, "data_parallel_rank": 3}, 4, 1, 3, 1),
        ({"data_parallel_size": 4, "data_parallel_rank": 0}, 4, 1, 0, 1),
        (
            {
                "data_parallel_size": 4,
                "data_parallel_size_local": 2,
                "data_parallel_start_rank": 2,
            },
            4,
            2,
            2,
            2,
        ),
        (
            {
                "data_parallel_size": 4,
                "data_parallel_size_local": 2,
                "data_parallel_hybrid_lb": True,
            },
            4,
            2,
            0,
            2,
        ),
        (
            {
                "data_parallel_size": 2,
                "data_parallel_rank": 1,
                "data_parallel_external_lb": True,
                "data_parallel_size_local": 1,
            },
            2,
            1,
            1,
            1,
        ),
        ({"data_parallel_size": 4, "data_parallel_size_local": 1}, 4, 1, 0, 4),
        ({"data_parallel_size": 4, "data_parallel_size_local": 0}, 4, 0, 0, 4),
        (
            {
                "data_parallel_size": 4,
                "data_parallel_size_local": 2,
                "data_parallel_start_rank": 2,
                "headless": True,
            },
            4,
            2,
            2,
            4,
        ),
    ],
    ids=str,
)
def test_copies_of_a_server(
    tiny_story: Any, options: dict[str, Any], size: int, local: int, first: int, served: int
) -> None:
    parallel = EngineArgs(model=str(tiny_story), **options).create_engine_config().parallel
    assert parallel.data_parallel_size == size
    assert parallel.data_parallel_size_local == local
    assert parallel.data_parallel_start_rank == parallel.data_parallel_rank == first
    assert parallel.local_copy == 0
    assert parallel.served_copies == served


@pytest.mark.parametrize("local", [None, 0, 2])
def test_copies_that_ray_places_are_none_of_the_servers_own(tiny_story: Any, local: Any) -> None:
    pytest.importorskip("ray", reason="ray is not installed")
    options = {"data_parallel_size": 3, "data_parallel_backend": "ray"}
    args = EngineArgs(model=str(tiny_story), data_parallel_size_local=local, **options)
    parallel = args.create_engine_config().parallel
    assert (parallel.data_parallel_size_local, parallel.served_copies) == (0, 3)
    assert parallel.ray.copies_here == (-1 if local is None else local)
    assert parallel.ray.flag == "--data-parallel-backend ray"
    assert parallel.data_parallel_address == "", "where Ray says that it is"


def test_one_copy_needs_no_ray_with_a_warning(
    tiny_story: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("vllm"), "propagate", True)
    args = EngineArgs(model=str(tiny_story), data_parallel_backend="ray")
    parallel = args.create_engine_config().parallel
    assert (parallel.data_parallel_backend, parallel.data_parallel_size_local) == ("mp", 1)
    assert parallel.data_parallel_address == "127.0.0.1"
    assert "--data-parallel-backend ray has no effect" in caplog.text


def test_programs_are_numbered_by_variables_where_flags_do_not(
    tiny_story: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def parallel(**options: Any) -> ParallelConfig:
        return EngineArgs(model=str(tiny_story), **options).create_engine_config().parallel

    monkeypatch.setenv("VLLM_DP_SIZE", "3")
    monkeypatch.setenv("VLLM_DP_RANK", "2")
    own = parallel()
    assert (own.data_parallel_size, own.data_parallel_rank, own.served_copies) == (3, 2, 1)
    assert (own.data_parallel_address, own.data_parallel_rpc_port) == ("127.0.0.1", 29550)
    monkeypatch.setenv("VLLM_DP_MASTER_IP", "10.0.0.7")
    monkeypatch.setenv("VLLM_DP_MASTER_PORT", "4321")
    own = parallel()
    assert (own.data_parallel_address, own.data_parallel_rpc_port) == ("10.0.0.7", 4321)
    own = parallel(data_parallel_size=2)
    assert (own.data_parallel_size, own.data_parallel_rank, own.served_copies) == (2, 0, 2)
    monkeypatch.setenv("VLLM_DP_RANK", "3")
    with pytest.raises(ConfigError, match="VLLM_DP_RANK=3: programs are numbered from 0, and VLLM"):
        parallel()


COPIES: dict[str, Any] = {"data_parallel_size": 2, "tensor_parallel_size": 2}


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"nnodes": 2}, "--nnodes 2: --master-addr is the first machine of one copy"),
        (
            {"distributed_executor_backend": "external_launcher"},
            "a program that torchrun has started steps the engine itself",
        ),
        (
            {"distributed_executor_backend": "ray", "data_parallel_backend": "ray"},
            "the first takes the devices of a copy on one machine, and the second would take them",
        ),
    ],
    ids=["nodes", "torchrun", "ray"],
)
def test_ranks_of_copies_that_cannot_be_where_they_are_asked_are_refused(
    tiny_story: Any, options: dict[str, Any], why: str
) -> None:
    with pytest.raises(ConfigError, match=why):
        EngineArgs(model=str(tiny_story), **COPIES, **options).create_engine_config()


@pytest.mark.parametrize("node", [0, 1])
def test_a_server_s_only_copy_may_be_on_several_nodes(tiny_story: Any, node: int) -> None:
    where = {"nnodes": 2, "node_rank": node, "headless": bool(node)}
    args = EngineArgs(model=str(tiny_story), **COPIES, **where, data_parallel_rank=1)
    parallel = args.create_engine_config().parallel
    assert (parallel.nnodes, parallel.data_parallel_rank, parallel.served_copies) == (2, 1, 1)
