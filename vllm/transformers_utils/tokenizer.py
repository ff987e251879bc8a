"""Reading tokenizers."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from vllm.errors import ConfigError, LoadError
from vllm.logger import init_logger
from vllm.transformers_utils.hub import TOKENIZER_FILES, Source, locate
from vllm.transformers_utils.plain_tokenizer import PlainTokenizer, plain_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

logger = init_logger(__name__)


def get_tokenizer(
    tokenizer_name: str | Path,
    *args: Any,
    tokenizer_mode: str = "auto",
    trust_remote_code: bool = False,
    revision: str | None = None,
    download_dir: str | None = None,
    **kwargs: Any,
) -> PreTrainedTokenizerBase:
    """A tokenizer of transformers by the name of its model or its directory, as vLLM gives one.

    `args` and `kwargs` are those of `AutoTokenizer.from_pretrained`. The tokenizer of an engine is
    `LLM.get_tokenizer()`. Raises ConfigError, LoadError.
    """
    if tokenizer_mode not in ("auto", "slow"):
        raise ConfigError(
            f"tokenizer_mode {tokenizer_mode!r}: must be auto or slow; other kinds of tokenizers "
            "are not available yet."
        )
    source = Source(str(tokenizer_name), "tokenizer_name", revision or "main", download_dir)
    path = locate(source, TOKENIZER_FILES)
    use_fast = kwargs.pop("use_fast", tokenizer_mode != "slow")
    mode = "auto" if use_fast else "slow"
    return _load_full(path, mode, trust_remote_code, revision or "main", *args, **kwargs)


def load_tokenizer(
    path: Path,
    mode: str = "auto",
    trust_remote_code: bool = False,
    revision: str = "main",
) -> PreTrainedTokenizerBase:
    """A new tokenizer object. Raises LoadError.

    Where the files leave no doubt it is one that does without a tokenizer of transformers until
    more is asked of it than to encode, to decode and to render conversations.
    """
    load_full = partial(_load_full, path, mode, trust_remote_code, revision)
    found = None
    if mode != "slow":
        found = plain_tokenizer(path, load_full)
    return load_full() if found is None else cast("PreTrainedTokenizerBase", found)


def full_tokenizer(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """`tokenizer` as an object of transformers, for libraries that look at its class."""
    return tokenizer.full if isinstance(tokenizer, PlainTokenizer) else tokenizer


def backend_of(tokenizer: PreTrainedTokenizerBase) -> Tokenizer | None:
    """The Rust tokenizer behind a fast one."""
    if isinstance(tokenizer, PlainTokenizer):
        return tokenizer.backend_tokenizer
    from transformers import PreTrainedTokenizerFast

    return tokenizer.backend_tokenizer if isinstance(tokenizer, PreTrainedTokenizerFast) else None


def _load_full(
    path: Path, mode: str, trust_remote_code: bool, revision: str, *args: Any, **kwargs: Any
) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            path,
            *args,
            use_fast=mode != "slow",
            trust_remote_code=trust_remote_code,
            revision=revision,
            **kwargs,
        )
    except Exception as error:  # transformers and a tokenizer's own code raise anything
        raise LoadError(
            f"no tokenizer can be loaded from {path} ({type(error).__name__}: {error}). Name "
            "another with --tokenizer, or use --skip-tokenizer-init and token ids."
        ) from error
    if not tokenizer.is_fast and mode != "slow":
        logger.warning("%s has no fast tokenizer: tokenizing will be slow", path)
    return tokenizer
