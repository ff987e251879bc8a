"""Settings of expert parallelism: with which models and other settings they go."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import LogLines
from vllm.config.vllm import VllmConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.errors import ConfigError
from vllm.utils.argparse import FlexibleArgumentParser

Settle = Callable[..., VllmConfig]
Directory = Callable[..., Path]

MIXTRAL: dict[str, Any] = {
    "architectures": ["MixtralForCausalLM"],
    "model_type": "mixtral",
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
}


def test_the_command_line_knows_them() -> None:
    parser = EngineArgs.add_cli_args(FlexibleArgumentParser())
    for flag in ("-ep", "--enable-expert-parallel"):
        arguments = parser.parse_args([flag, "--expert-placement-strategy", "round_robin"])
        assert arguments.enable_expert_parallel
        assert arguments.expert_placement_strategy == "round_robin"
    assert not parser.parse_args([]).enable_expert_parallel


def test_models_with_experts_say_nothing(
    settle: Settle, directory: Directory, log_lines: LogLines
) -> None:
    config = settle(
        model=str(directory(**MIXTRAL)), tensor_parallel_size=2, enable_expert_parallel=True
    )
    assert config.parallel.enable_expert_parallel
    assert config.parallel.expert_placement_strategy == "linear"
    assert "expert" not in log_lines.text


def test_models_without_experts_run_with_a_warning(settle: Settle, log_lines: LogLines) -> None:
    settle(enable_expert_parallel=True, data_parallel_size=2)
    said = "--enable-expert-parallel has no effect: LlamaForCausalLM has no experts."
    assert log_lines.text.count(said) == 1


def test_a_placement_of_nothing_is_pointed_out(settle: Settle, log_lines: LogLines) -> None:
    settle(expert_placement_strategy="round_robin")
    said = "--expert-placement-strategy round_robin has no effect without --enable-expert-parallel"
    assert said in log_lines.text


def test_copies_share_experts_wherever_they_are(settle: Settle, directory: Directory) -> None:
    options = {"model": str(directory(**MIXTRAL)), "data_parallel_size": 2}
    assert settle(enable_expert_parallel=True, **options).spreads_experts
    assert not settle(**options).spreads_experts
    assert settle(enable_expert_parallel=True, data_parallel_rank=1, **options).spreads_experts


def test_unknown_placements_are_refused(settle: Settle) -> None:
    with pytest.raises(ConfigError, match="--expert-placement-strategy 'random'"):
        settle(expert_placement_strategy="random")
