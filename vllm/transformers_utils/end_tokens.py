"""Tokens that end a text: everything that a model's and a tokenizer's files name as such."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from vllm.errors import LoadError
from vllm.transformers_utils.config import Checkpoint, read_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Classes that bring no end token of their own; with or without the suffix Fast.
_WITHOUT_DEFAULTS: Final = frozenset({"", "PreTrainedTokenizer", "TokenizersBackend"})
# Either file may be the only one that was changed when a model was tuned to end its turns.
_NAMING_FILES: Final = ("tokenizer_config.json", "special_tokens_map.json")

LoadTokenizer = Callable[[], "PreTrainedTokenizerBase"]


class _AddedToken(msgspec.Struct):
    id: int
    content: str


class _Tokens(msgspec.Struct):
    """tokenizer.json; what is long in it is not read unless it must be."""

    added_tokens: list[_AddedToken] = []
    model: msgspec.Raw = msgspec.Raw(b"{}")


class _Vocabulary(msgspec.Struct):
    vocab: dict[str, int] | list[tuple[str, float]] = {}  # of Unigram: with scores, by id


def end_token_ids(
    checkpoint: Checkpoint,
    generation: Mapping[str, Any],
    tokenizer_path: Path,
    load_tokenizer: LoadTokenizer,
) -> frozenset[int]:
    """From generation_config.json, config.json and the tokenizer: each ends a text.

    `load_tokenizer` is called only for a tokenizer whose files leave open what it ends with; it may
    raise LoadError, which is for those to tell who need the tokenizer.
    """
    text_config = checkpoint.raw.get("text_config") or {}
    found: set[int] = set()
    for source in (generation, checkpoint.raw, text_config):
        value = source.get("eos_token_id")
        found.update(value if isinstance(value, list) else () if value is None else (value,))
    return frozenset(found) | _end_tokens_of_tokenizer(tokenizer_path, load_tokenizer)


def _end_tokens_of_tokenizer(path: Path, load_tokenizer: LoadTokenizer) -> frozenset[int]:
    settings, *others = (read_json(path / name) for name in _NAMING_FILES)
    named = {_text_of(source.get("eos_token")) for source in (settings, *others)} - {None}
    if not named:
        kind = str(settings.get("tokenizer_class") or "").removesuffix("Fast")
        is_silent = "eos_token" in settings or kind in _WITHOUT_DEFAULTS
        if is_silent and "auto_map" not in settings:
            return frozenset()
    known = _ids_of(named, path, settings)
    if named and named <= known.keys():
        return frozenset(known.values())
    try:
        tokenizer = load_tokenizer()
    except LoadError:
        return frozenset(known.values())
    own = tokenizer.eos_token_id
    return frozenset(known.values()) | (frozenset() if own is None else {own})


def _text_of(token: Any) -> str | None:
    """`token` as a string or as an AddedToken."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) and text else None


def _ids_of(texts: set[str | None], path: Path, settings: Mapping[str, Any]) -> dict[str, int]:
    """The ids of those texts that are tokens, as far as files say them that are fast to read."""
    listed = settings.get("added_tokens_decoder") or {}
    found = {
        str(_text_of(token)): int(i) for i, token in listed.items() if _text_of(token) in texts
    }
    try:
        tokens = msgspec.json.decode((path / "tokenizer.json").read_bytes(), type=_Tokens)
        found |= {
            token.content: token.id for token in tokens.added_tokens if token.content in texts
        }
        if not texts <= found.keys():
            found = _ids_in_vocabulary(tokens.model, texts) | found
    except (OSError, msgspec.DecodeError):
        pass  # told where the tokenizer is loaded, if it is needed
    return found


def _ids_in_vocabulary(model: msgspec.Raw, texts: set[str | None]) -> dict[str, int]:
    vocabulary = msgspec.json.decode(model, type=_Vocabulary).vocab
    if isinstance(vocabulary, dict):
        return {text: vocabulary[text] for text in texts if text in vocabulary}
    return {text: i for i, (text, _) in enumerate(vocabulary) if text in texts}
