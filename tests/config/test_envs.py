"""Environment variables: typed, checked, one table."""

from __future__ import annotations

import pytest

from vllm import envs
from vllm.envs import Environment
from vllm.errors import ConfigError


def test_values_are_typed_and_read_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    assert envs.VLLM_CPU_KVCACHE_SPACE == 0.0
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "2.5")
    assert envs.VLLM_CPU_KVCACHE_SPACE == 2.5


def test_empty_is_not_set() -> None:
    env = Environment({"VLLM_DELAYED_SAMPLING": " "})

    assert env.VLLM_DELAYED_SAMPLING is None
    assert not env.is_set("VLLM_DELAYED_SAMPLING")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("VLLM_CPU_KVCACHE_SPACE", "lots"),
        ("VLLM_CPU_KVCACHE_SPACE", "-1"),
        ("VLLM_CPU_KVCACHE_SPACE", "nan"),
        ("VLLM_LOGGING_LEVEL", "LOUD"),
        ("VLLM_DELAYED_SAMPLING", "2"),
        ("VLLM_PORT", "tcp://10.0.0.1:80"),
        ("VLLM_TARGET_DEVICE", "abacus"),
        ("VLLM_WORKER_MULTIPROC_METHOD", "fork"),
    ],
)
def test_unparsable_value_is_an_error_that_says_what_is_allowed(name: str, text: str) -> None:
    with pytest.raises(ConfigError, match=rf"{name}='{text}': must be "):
        Environment({name: text}).check()


def test_undeclared_names_are_no_attributes() -> None:
    with pytest.raises(AttributeError, match="VLLM_NOPE"):
        _ = envs.VLLM_NOPE  # type: ignore[attr-defined]
    assert Environment({"VLLM_NOPE": "1", "PATH": "x"}).unknown() == ["VLLM_NOPE"]


def test_defaults_parse_and_names_are_unique() -> None:
    assert len({v.name for v in envs.VARIABLES}) == len(envs.VARIABLES)
    Environment({}).check()
