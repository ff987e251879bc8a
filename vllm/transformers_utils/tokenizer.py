"""The tokenizer of a model, one object per process."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from vllm.errors import ConfigError, LoadError
from vllm.logger import init_logger

if TYPE_CHECKING:
    from vllm.config.model import ModelConfig

logger = init_logger(__name__)

_lock = threading.Lock()
_loaded: dict[tuple[Any, ...], PreTrainedTokenizerBase] = {}


def get_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """The configured tokenizer: always the same object for the same settings.

    May be used by several threads at once for plain encoding and decoding; truncation and padding
    options passed to a call are state of a fast tokenizer, so callers truncate themselves.
    Raises ConfigError with --skip-tokenizer-init, LoadError if there is none or it is broken.
    """
    if config.skip_tokenizer_init:
        raise ConfigError(
            "--skip-tokenizer-init: there is no tokenizer. Give prompts as token ids, read the "
            "output as token ids, or leave the flag out."
        )
    key = (
        config.tokenizer_path,
        config.tokenizer_mode,
        config.trust_remote_code,
        config.tokenizer_revision,
    )
    with _lock:
        if key not in _loaded:
            _loaded[key] = load_tokenizer(*key)
        return _loaded[key]


def load_tokenizer(
    path: Path,
    mode: str = "auto",
    trust_remote_code: bool = False,
    revision: str = "main",
) -> PreTrainedTokenizerBase:
    """A new tokenizer object. Raises LoadError."""
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            path,
            use_fast=mode != "slow",
            trust_remote_code=trust_remote_code,
            revision=revision,
        )
    except Exception as error:  # transformers and a tokenizer's own code raise anything
        raise LoadError(
            f"no tokenizer can be loaded from {path} ({type(error).__name__}: {error}). Name "
            "another with --tokenizer, or use --skip-tokenizer-init and token ids."
        ) from error
    if not tokenizer.is_fast and mode != "slow":
        logger.warning("%s has no fast tokenizer: tokenizing will be slow", path)
    return tokenizer
