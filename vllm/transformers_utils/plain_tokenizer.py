"""A tokenizer that is all in its tokenizer.json, without importing transformers.

Only for byte-level BPE of model families whose class in transformers changes nothing about what the
file says; `plain_tokenizer` declines what leaves a doubt.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
from tokenizers import AddedToken, Tokenizer

from vllm.transformers_utils.chat_template import render_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FAMILIES: Final = frozenset({"llama", "qwen2", "qwen3", "qwen3_moe"})
# Without the suffix Fast. The first two take tokenizer.json as it is.
_GENERIC: Final = frozenset({"PreTrainedTokenizer", "TokenizersBackend"})
_NAMED: Final = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
# Fields of tokenizer_config.json that change no token, and those that do not if they are false.
_HARMLESS: Final = frozenset(
    {
        "added_tokens_decoder",
        "additional_special_tokens",
        "backend",
        "chat_template",
        "clean_up_tokenization_spaces",  # never done with BPE
        "errors",
        "extra_special_tokens",
        "is_local",
        "local_files_only",
        "model_input_names",
        "model_max_length",
        "name_or_path",
        "padding_side",
        "tokenizer_class",
        "truncation_side",
    }
)
_FALSE: Final = frozenset(
    {"add_bos_token", "add_eos_token", "add_prefix_space", "split_special_tokens"}
)
# Arguments of apply_chat_template that are no variables of the template.
_OF_FULL: Final = frozenset(
    {
        "max_length",
        "padding",
        "return_assistant_tokens_mask",
        "return_dict",
        "return_tensors",
        "sanitize_control_tokens",
        "tokenizer_kwargs",
        "truncation",
    }
)
_OTHER_TOKENS: Final = ("added_tokens.json", "special_tokens_map.json")
# SHA-256 of the expression that Qwen's class cuts text with, whatever the file says.
_QWEN_PIECES: Final = "1ff7f41064896984db5d1bb6ff64fa4bc29007d08c1b439e505b7392777a319e"
# Tokens to which that class gives values of its own where the settings have none.
_QWEN_NAMED: Final = frozenset({"unk_token", "eos_token", "pad_token"})


class Bpe(msgspec.Struct):
    """`model` of tokenizer.json, without its vocabulary and merges, which take time to read."""

    type: str = ""
    dropout: float | None = None
    unk_token: str | None = None
    continuing_subword_prefix: str | None = None
    end_of_word_suffix: str | None = None
    fuse_unk: bool = False
    byte_fallback: bool = False
    ignore_merges: bool = False

    @property
    def is_bare(self) -> bool:
        fields = msgspec.structs.asdict(self)
        return not any(value for name, value in fields.items() if name != "type")


class Rules(msgspec.Struct):
    """tokenizer.json."""

    model: Bpe
    added_tokens: list[dict[str, Any]] = []
    normalizer: dict[str, Any] | None = None
    pre_tokenizer: dict[str, Any] | None = None
    post_processor: dict[str, Any] | None = None
    decoder: dict[str, Any] | None = None
    truncation: Any = None
    padding: Any = None


class PlainTokenizer:
    """The part of a tokenizer of transformers that serving needs. Thread-safe.

    For anything else the whole object is loaded, when it is asked for.
    """

    is_fast = True

    def __init__(
        self,
        backend: Tokenizer,
        settings: Mapping[str, Any],
        chat_template: str | None,
        load_full: Callable[[], PreTrainedTokenizerBase],
    ) -> None:
        self.backend_tokenizer = backend
        self.chat_template = chat_template
        named = {name: settings.get(name) for name in _NAMED}
        self.special_tokens_map = {k: _text_of(v) for k, v in named.items() if v is not None}
        self._load_full = load_full

    @cached_property
    def full(self) -> PreTrainedTokenizerBase:
        """As an object of transformers."""
        return self._load_full()

    @cached_property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        found: dict[int, AddedToken] = self.backend_tokenizer.get_added_tokens_decoder()
        return found

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_load_full":
            raise AttributeError(name)
        return getattr(self.full, name)

    def __len__(self) -> int:
        size: int = self.backend_tokenizer.get_vocab_size()
        return size

    def __call__(self, text: Any, *args: Any, **options: Any) -> Any:
        if args or options or not isinstance(text, list):
            return self.full(text, *args, **options)
        return {"input_ids": [e.ids for e in self.backend_tokenizer.encode_batch(text)]}

    def get_vocab(self) -> dict[str, int]:
        vocabulary: dict[str, int] = self.backend_tokenizer.get_vocab()
        return vocabulary

    def encode(self, text: Any, *args: Any, **options: Any) -> list[int]:
        if args or options.keys() - {"add_special_tokens"} or not isinstance(text, str):
            return self.full.encode(text, *args, **options)
        ids: list[int] = self.backend_tokenizer.encode(text, **options).ids
        return ids

    def decode(self, token_ids: Any, skip_special_tokens: bool = False, **options: Any) -> Any:
        options.pop("clean_up_tokenization_spaces", None)
        if options or not isinstance(token_ids, list) or _is_nested(token_ids):
            return self.full.decode(token_ids, skip_special_tokens=skip_special_tokens, **options)
        return self.backend_tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)

    def convert_ids_to_tokens(self, ids: Any, *args: Any, **options: Any) -> Any:
        if args or options or not isinstance(ids, int | list):
            return self.full.convert_ids_to_tokens(ids, *args, **options)
        to_token = self.backend_tokenizer.id_to_token
        return to_token(ids) if isinstance(ids, int) else [to_token(i) for i in ids]

    def apply_chat_template(self, conversation: Any, /, *args: Any, **options: Any) -> Any:
        is_text = not (args or options.get("tokenize", True) or options.keys() & _OF_FULL)
        template = options.get("chat_template")
        template = self.chat_template if template is None else template
        if template is None or not is_text or not _is_conversation(conversation, options):
            return self.full.apply_chat_template(conversation, *args, **options)
        variables = {k: v for k, v in options.items() if k not in ("chat_template", "tokenize")}
        return render_template(conversation, template, self.special_tokens_map, **variables)


def plain_tokenizer(
    path: Path, load_full: Callable[[], PreTrainedTokenizerBase]
) -> PlainTokenizer | None:
    """The tokenizer of a directory; None if transformers should be asked."""
    try:
        text = (path / "tokenizer.json").read_bytes()
        rules = msgspec.json.decode(text, type=Rules)
        settings = _object(path / "tokenizer_config.json")
        model = _object(path / "config.json")
    except (OSError, msgspec.DecodeError):
        return None
    if model.get("model_type") not in _FAMILIES or "auto_map" in model:
        return None
    if not _is_byte_level_bpe(rules) or not _changes_nothing(settings, rules):
        return None
    if "added_tokens_decoder" not in settings and any((path / f).exists() for f in _OTHER_TOKENS):
        return None
    template = _chat_template(path, settings)
    if template is not None and not isinstance(template, str):
        return None
    return PlainTokenizer(Tokenizer.from_buffer(text), settings, template, load_full)


def _object(path: Path) -> dict[str, Any]:
    return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])


def _is_byte_level_bpe(rules: Rules) -> bool:
    is_byte_level = rules.decoder is not None and rules.decoder.get("type") == "ByteLevel"
    return (
        rules.model.type == "BPE"
        and is_byte_level
        and rules.truncation is None
        and rules.padding is None
    )


def _changes_nothing(settings: Mapping[str, Any], rules: Rules) -> bool:
    """Whether transformers would encode as tokenizer.json alone says."""
    if settings.keys() - {*_HARMLESS, *_FALSE, *_NAMED}:
        return False
    if any(settings.get(name) for name in _FALSE):
        return False
    kind = str(settings.get("tokenizer_class", "")).removesuffix("Fast")
    is_generic = kind in _GENERIC
    if not is_generic and not (kind == "Qwen2Tokenizer" and _is_qwen(settings, rules)):
        return False
    # Either flag, even if it is false, puts a post-processor there that adds nothing.
    is_replaced = not is_generic or "add_bos_token" in settings or "add_eos_token" in settings
    if is_replaced and _adds_tokens(rules.post_processor or {"type": "ByteLevel"}):
        return False
    return _tokens_are_known(settings, rules.added_tokens)


def _adds_tokens(post_processor: Mapping[str, Any]) -> bool:
    kind = post_processor.get("type")
    is_empty = kind == "TemplateProcessing" and not post_processor.get("special_tokens")
    return not is_empty and kind != "ByteLevel"


def _is_qwen(settings: Mapping[str, Any], rules: Rules) -> bool:
    """Whether the file says what Qwen's class would do without it."""
    steps = (rules.pre_tokenizer or {}).get("pretokenizers") or ()
    if len(steps) != 2 or rules.normalizer != {"type": "NFC"} or not rules.model.is_bare:
        return False
    split, byte_level = steps
    pieces = str((split.get("pattern") or {}).get("Regex", ""))
    return (
        settings.keys() >= _QWEN_NAMED
        and hashlib.sha256(pieces.encode()).hexdigest() == _QWEN_PIECES
        and (split.get("behavior"), split.get("invert")) == ("Isolated", False)
        and (byte_level.get("type"), byte_level.get("use_regex")) == ("ByteLevel", False)
        and not byte_level.get("add_prefix_space")
    )


def _tokens_are_known(settings: Mapping[str, Any], added: Sequence[Mapping[str, Any]]) -> bool:
    """Whether all tokens of tokenizer_config.json are in tokenizer.json, with the same flags."""
    by_text = {token["content"]: token for token in added}
    special = {text for text, token in by_text.items() if token["special"]}
    named = [settings[name] for name in _NAMED if settings.get(name) is not None]
    for name in ("additional_special_tokens", "extra_special_tokens"):
        extra = settings.get(name) or []
        if not isinstance(extra, list):
            return False
        named += extra
    if not all(_text_of(token) in special for token in named):
        return False
    listed = settings.get("added_tokens_decoder") or {}
    for token_id, token in listed.items():
        known = by_text.get(token.get("content"))
        if known is None or str(known["id"]) != token_id:
            return False
        if any(known[flag] != token.get(flag, False) for flag in known.keys() - {"id", "content"}):
            return False
    return True


def _text_of(token: Any) -> str:
    return str(token.get("content") if isinstance(token, dict) else token)


def _chat_template(path: Path, settings: Mapping[str, Any]) -> Any:
    """The template; something that is no text where there are several."""
    if (path / "additional_chat_templates").is_dir():
        return {}
    try:
        return (path / "chat_template.jinja").read_text(encoding="utf-8")
    except OSError:
        return settings.get("chat_template")


def _is_conversation(messages: Any, arguments: Mapping[str, Any]) -> bool:
    """A single one, of which transformers refuses nothing before its template is run."""
    is_one = bool(messages) and all(isinstance(message, dict) for message in messages)
    ends = arguments.get("add_generation_prompt"), arguments.get("continue_final_message")
    return is_one and not all(ends)


def _is_nested(token_ids: list[Any]) -> bool:
    return bool(token_ids) and not isinstance(token_ids[0], int)
