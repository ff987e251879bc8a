"""The tokenizer of the configured model, one object per process."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from vllm.config.model import ModelConfig
from vllm.errors import ConfigError
from vllm.transformers_utils.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_lock = threading.Lock()
_loaded: dict[tuple[Any, ...], PreTrainedTokenizerBase] = {}


def model_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
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
