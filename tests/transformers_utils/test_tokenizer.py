"""One tokenizer per process, usable from several threads, with errors that explain themselves."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from vllm.engine.arg_utils import EngineArgs
from vllm.engine.tokenizer import model_tokenizer
from vllm.errors import ConfigError, LoadError
from vllm.transformers_utils.tokenizer import get_tokenizer, load_tokenizer


def test_the_same_settings_give_the_same_fast_tokenizer(tiny_story: Path) -> None:
    config = EngineArgs(model=str(tiny_story)).create_engine_config().model

    tokenizer = model_tokenizer(config)

    assert tokenizer is model_tokenizer(config)
    assert tokenizer.is_fast
    ids = tokenizer.encode("One day", add_special_tokens=False)
    assert tokenizer.decode(ids) == "One day"
    other = dataclasses.replace(config, tokenizer_mode="slow")
    assert model_tokenizer(other) is not tokenizer


def test_a_tokenizer_of_its_own_directory_is_used(
    tiny_story: Path, checkpoint: Callable[..., Path]
) -> None:
    path = checkpoint("llama")

    config = EngineArgs(model=str(path), tokenizer=str(tiny_story)).create_engine_config().model

    assert config.tokenizer_path == tiny_story
    assert len(model_tokenizer(config)) > 0


def test_one_is_found_by_the_name_of_its_model(tiny_story: Path) -> None:
    tokenizer = get_tokenizer(str(tiny_story), trust_remote_code=False, truncation_side="left")
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    assert tokenizer.truncation_side == "left"
    assert tokenizer.encode("One day") == load_tokenizer(tiny_story).encode("One day")
    with pytest.raises(ConfigError, match="tokenizer_mode 'mistral': must be auto or slow"):
        get_tokenizer(tiny_story, tokenizer_mode="mistral")
    with pytest.raises(ConfigError, match="tokenizer_name /no/such"):
        get_tokenizer("/no/such")


def test_threads_may_share_it(tiny_story: Path) -> None:
    tokenizer = load_tokenizer(tiny_story)
    texts = [f"Once there were {n} cats and {n * 7} dogs." for n in range(200)]
    expected = [tokenizer.encode(text) for text in texts]

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(tokenizer.encode, texts)) == expected


def test_absent_tokenizer_is_an_error_that_names_the_flags(
    tmp_path: Path, tiny_story: Path
) -> None:
    with pytest.raises(LoadError, match="--tokenizer, or use --skip-tokenizer-init"):
        load_tokenizer(tmp_path)

    args = EngineArgs(model=str(tiny_story), skip_tokenizer_init=True)
    with pytest.raises(ConfigError, match="--skip-tokenizer-init"):
        model_tokenizer(args.create_engine_config().model)
