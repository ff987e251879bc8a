"""Which copies of the model a server has."""

from __future__ import annotations

from typing import Any

import pytest

from vllm.engine.arg_utils import EngineArgs


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
