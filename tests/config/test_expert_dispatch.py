"""How tokens reach experts of other copies: names, and what they are mapped to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.conftest import LogLines
from vllm.config.vllm import VllmConfig
from vllm.errors import ConfigError
from vllm.expert_variables import ALL2ALL_BACKENDS, BY_SHAPE, EXCHANGE, GATHER

Settle = Callable[..., VllmConfig]
SPREAD = {"data_parallel_size": 2, "enable_expert_parallel": True}


@pytest.mark.parametrize("name", ALL2ALL_BACKENDS)
def test_names_of_libraries_are_mapped_and_say_so_once(
    name: str, settle: Settle, directory: Any, log_lines: LogLines
) -> None:
    model = str(directory(num_local_experts=4))
    for _ in range(2):
        parallel = settle(model=model, all2all_backend=name, **SPREAD).parallel
    is_plain = name in ("allgather_reducescatter", "naive")
    assert parallel.expert_dispatch == (GATHER if is_plain else EXCHANGE)
    said = f"--all2all-backend {name}: that library is not used"
    assert log_lines.text.count(said) == (0 if is_plain else 1)


def test_the_shape_decides_unless_a_flag_or_a_variable_does(settle: Settle) -> None:
    env = {"VLLM_ALL2ALL_BACKEND": "pplx"}
    assert settle().parallel.expert_dispatch == BY_SHAPE
    assert settle(env).parallel.expert_dispatch == EXCHANGE
    assert settle(env, all2all_backend="naive").parallel.expert_dispatch == GATHER
    with pytest.raises(ConfigError, match="VLLM_ALL2ALL_BACKEND"):
        settle({"VLLM_ALL2ALL_BACKEND": "nccl"})


def test_a_name_without_experts_to_share_has_no_effect(settle: Settle, log_lines: LogLines) -> None:
    settle(all2all_backend="deepep_v2")
    assert "--all2all-backend deepep_v2 has no effect" in log_lines.text
