"""Variables of features to come: harmless at their default, refused otherwise."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.conftest import LogLines
from vllm import envs
from vllm.config import unavailable_variables
from vllm.config.unavailable_variables import UNAVAILABLE_VARIABLES, UnavailableVariable
from vllm.config.vllm import VllmConfig
from vllm.envs import Environment
from vllm.errors import ConfigError

Settle = Callable[..., VllmConfig]


@pytest.mark.parametrize("row", UNAVAILABLE_VARIABLES, ids=lambda row: row.name)
def test_setting_one_is_refused_by_name_with_the_feature(row: UnavailableVariable) -> None:
    with pytest.raises(ConfigError) as error:
        unavailable_variables.check_all(Environment({row.name: "wanted"}))

    assert row.name in str(error.value)
    assert f"{row.feature} is not available yet" in str(error.value)


@pytest.mark.parametrize("row", UNAVAILABLE_VARIABLES, ids=lambda row: row.name)
def test_what_asks_for_nothing_is_accepted(row: UnavailableVariable) -> None:
    for text in ("", " ", *row.neutral, *(word.upper() for word in row.neutral)):
        unavailable_variables.check_all(Environment({row.name: text}))


def test_none_is_also_declared() -> None:
    assert not unavailable_variables.NAMES & {variable.name for variable in envs.VARIABLES}
    assert len(unavailable_variables.NAMES) == len(UNAVAILABLE_VARIABLES)


def test_a_start_with_one_is_refused(settle: Settle) -> None:
    with pytest.raises(ConfigError, match=r"QUANT_CONFIG=/q\.json: quantization is not available"):
        settle({"QUANT_CONFIG": "/q.json"})


def test_a_neutral_one_is_not_called_unknown(settle: Settle, log_lines: LogLines) -> None:
    settle({"VLLM_COMPACT_GDN": "0", "VLLM_COMPACT_GND": "0"})

    assert "VLLM_COMPACT_GDN has no effect" not in log_lines.text
    assert "VLLM_COMPACT_GND has no effect" in log_lines.text
