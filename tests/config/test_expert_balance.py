"""Settings of experts that move between ranks (EPLB)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.config.test_experts import MIXTRAL
from tests.conftest import LogLines
from vllm.config.vllm import VllmConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.errors import ConfigError
from vllm.utils.argparse import FlexibleArgumentParser

Settle = Callable[..., VllmConfig]
Directory = Callable[..., Path]

RANKS: dict[str, Any] = {"tensor_parallel_size": 2, "enable_expert_parallel": True}
BALANCED: dict[str, Any] = {**RANKS, "enable_eplb": True}


@pytest.fixture
def mixtral(directory: Directory) -> str:
    return str(directory(**MIXTRAL))


@pytest.mark.parametrize(
    "words",
    [
        "--num-redundant-experts 4 --eplb-window-size 50 --eplb-step-interval 200 "
        "--eplb-log-balancedness --eplb-log-balancedness-interval 9",
        "--eplb-config.num_redundant_experts 4 --eplb-config.window_size 50 "
        "--eplb-config.step_interval 200 --eplb-config.log_balancedness true "
        "--eplb-config.log_balancedness_interval 9",
        '--eplb-config {"num_redundant_experts":4,"window_size":50,"step_interval":200,'
        '"log_balancedness":true,"log_balancedness_interval":9}',
    ],
)
def test_both_spellings_mean_the_same(settle: Settle, mixtral: str, words: str) -> None:
    parser = EngineArgs.add_cli_args(FlexibleArgumentParser())
    arguments = parser.parse_args(["--enable-eplb", *words.split()])
    given = EngineArgs.from_cli_args(arguments).values()
    config = settle(**{**given, **RANKS, "model": mixtral}).expert_balance
    assert config.enabled
    assert config.num_redundant_experts == 4
    assert (config.window_size, config.step_interval) == (50, 200)
    assert config.log_balancedness and config.log_balancedness_interval == 9


def test_defaults_are_those_of_vllm(settle: Settle, mixtral: str, log_lines: LogLines) -> None:
    config = settle(model=mixtral, **BALANCED).expert_balance
    assert (config.num_redundant_experts, config.log_balancedness) == (0, False)
    assert (config.window_size, config.step_interval) == (1000, 3000)
    assert not settle(model=mixtral).expert_balance.enabled
    assert "eplb" not in log_lines.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({**BALANCED, "enable_expert_parallel": False}, "--enable-eplb: without --enable-expert-p"),
        ({**BALANCED, "tensor_parallel_size": 1}, "--enable-eplb: one rank has all experts"),
        (
            {**BALANCED, "tensor_parallel_size": 1, "pipeline_parallel_size": 2},
            "--enable-eplb: one rank has all experts of a layer",
        ),
        (
            {**RANKS, "num_redundant_experts": 2},
            "--num-redundant-experts 2: .* with --enable-eplb only",
        ),
        (
            {**RANKS, "eplb_config": {"num_redundant_experts": 2}},
            "--num-redundant-experts 2: .* with --enable-eplb only",
        ),
        ({**BALANCED, "eplb_window_size": 0}, "--eplb-window-size 0: must be at least 1"),
        ({**BALANCED, "eplb_config": {"step_interval": 0}}, "--eplb-step-interval 0: must be"),
        (
            {**BALANCED, "eplb_config": {"policy": "swipe"}},
            "--eplb-config.policy swipe: .* Leave it out",
        ),
        (
            {**BALANCED, "eplb_config": {"windowsize": 3}},
            "--eplb-config.windowsize: there is no such setting.* window_size",
        ),
        (
            {**BALANCED, "eplb_config": {"enabled": True}},
            "--eplb-config.enabled: there is no such setting",
        ),
    ],
)
def test_what_balances_nothing_is_refused(
    settle: Settle, mixtral: str, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        settle(model=mixtral, **arguments)


def test_models_without_experts_are_refused(settle: Settle) -> None:
    with pytest.raises(ConfigError, match="--enable-eplb: LlamaForCausalLM has no experts"):
        settle(**BALANCED)


def test_what_has_no_effect_says_so(settle: Settle, mixtral: str, log_lines: LogLines) -> None:
    ineffective = {"use_async": True, "communicator": "torch_gloo", "policy": "default"}
    settle(model=mixtral, **BALANCED, eplb_config=ineffective)
    for key in ("use_async", "communicator"):
        assert log_lines.text.count(f"--eplb-config.{key} has no effect") == 1
    assert "policy" not in log_lines.text
    settle(model=mixtral, **RANKS, eplb_step_interval=5)
    assert "--eplb-... has no effect without --enable-eplb" in log_lines.text
