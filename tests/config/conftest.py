"""Checkpoints that are a config.json and no weights: all that resolving looks at."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vllm.config.vllm import VllmConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.engine.resolve import resolve
from vllm.envs import Environment
from vllm.platforms.base import Platform

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "max_position_embeddings": 4096,
    "eos_token_id": 7,
    "dtype": "float32",
}


@pytest.fixture
def directory(tmp_path: Path) -> Callable[..., Path]:
    """directory(files, **config): a model directory; files are objects by name, None removes a "
    "key."""

    def make(files: dict[str, Any] | None = None, **changes: Any) -> Path:
        config = {k: v for k, v in {**LLAMA, **changes}.items() if v is not None}
        for name, value in {"config.json": config, **(files or {})}.items():
            text = value if isinstance(value, str) else json.dumps(value)
            (tmp_path / name).write_text(text)
        return tmp_path

    return make


@pytest.fixture
def settle(directory: Callable[..., Path]) -> Callable[..., VllmConfig]:
    """settle(env, platform, **arguments): the resolved config, for a plain Llama unless `model`."""

    def get(
        env: dict[str, str] | None = None, platform: Platform | None = None, **arguments: Any
    ) -> VllmConfig:
        if "model" not in arguments:
            arguments["model"] = str(directory())
        return resolve(EngineArgs(**arguments).values(), Environment(env or {}), platform)

    return get
