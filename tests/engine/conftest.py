"""A resolved configuration of the shipped model; engines in tests are scripted or real."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from vllm.config.vllm import VllmConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.engine.tokenizer import model_tokenizer
from vllm.transformers_utils.detokenizer import TextDecoder

TINY_STORY = Path(__file__).parents[2] / "examples" / "models" / "tiny-story"


@pytest.fixture(scope="session")
def config() -> VllmConfig:
    return EngineArgs(model=str(TINY_STORY)).create_engine_config()


@pytest.fixture(scope="session")
def config_without_tokenizer(config: VllmConfig) -> VllmConfig:
    model = dataclasses.replace(config.model, skip_tokenizer_init=True)
    return dataclasses.replace(config, model=model)


@pytest.fixture(scope="session")
def text_decoder(config: VllmConfig) -> TextDecoder:
    return TextDecoder(model_tokenizer(config.model), config.model.vocab_size)
