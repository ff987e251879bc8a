"""Grammars by llguidance: masks are computed as they are needed, so compilation is instant."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from vllm.structured_output.cost import num_optional
from vllm.structured_output.grammar import Grammar, GrammarError, MaskRow, num_words
from vllm.structured_output.notation import RUST, string_for_guidance, text_for
from vllm.structured_output.pattern import NotPlain, found_in, read, texts
from vllm.structured_output.schema import MAX_WHITESPACE, nodes, rewrite_patterns
from vllm.structured_params import StructuredOutputsParams
from vllm.transformers_utils.detokenizer import special_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# 4000 in a row take 0.15 s: the square of their number.
_MAX_OPTIONAL = 10_000
# At one place; a weak model can go on with blank lines for ever.
_WHITESPACE = rf"[ \n\r\t]{{0,{MAX_WHITESPACE}}}"
# As string_for_guidance has it; not where "]" or "-" stands for itself because it comes first.
_SET_OF_OTHERS = re.compile(r"(\\.)|\[\^(?![\]-])", re.DOTALL)


class GuidanceBackend:
    """Compiles forms for one tokenizer. Thread-safe."""

    name = "guidance"

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, vocab_size: int, eos_token_ids: Iterable[int]
    ) -> None:
        import llguidance
        import llguidance.hf

        # Of the tokenizer there may be more tokens than the model has, or fewer.
        num_known = max(vocab_size, 1 + max(tokenizer.get_vocab().values(), default=0))
        eos = sorted(eos_token_ids)
        assert eos, "the compiler asks only where there is an end token"
        self._library = llguidance
        self._tokenizer = llguidance.hf.from_tokenizer(
            tokenizer,  # type: ignore[arg-type]  # a fast one, or the library says what is wrong
            n_vocab=num_known,
            eos_token=eos,
        )
        self._eos = frozenset(eos)
        self._special = [
            str(tokenizer.convert_ids_to_tokens(token_id)) for token_id in special_ids(tokenizer)
        ]
        self._room = MaskRoom(vocab_size, num_words(num_known))

    def rejects(self, params: StructuredOutputsParams) -> str | None:
        if num_optional(params) > _MAX_OPTIONAL:
            return f"more than {_MAX_OPTIONAL} optional parts in one sequence"
        return "structural tags" if params.kind == "structural_tag" else None

    def compile(self, params: StructuredOutputsParams) -> GuidanceForm:
        """Raises GrammarError."""
        try:
            grammar = self._grammar(params)
            # Where only one text can come next the library takes it for the tokens that the
            # tokenizer makes of it, and then refuses those of them that are special.
            if any(map(_spelled(params).__contains__, self._special)):
                grammar = _without_forced_tokens(grammar)
            matcher = self._library.LLMatcher(self._tokenizer, grammar)
        except Exception as error:  # whatever the library raises, the form is at fault
            raise GrammarError(str(error)[:500] or type(error).__name__) from error
        if matcher.is_error():
            raise GrammarError(matcher.get_error().partition("\n")[0][:500])
        return GuidanceForm(matcher, self._eos, self._room)

    def _grammar(self, params: StructuredOutputsParams) -> str:
        matcher, spec = self._library.LLMatcher, params.spec
        if params.kind in ("json", "json_object"):
            schema = json.loads(spec) if params.kind == "json" else {"type": "object"}
            if schema is True:
                schema = {}  # the same, as the library takes it
            if params.disable_additional_properties:
                _close_objects(schema)
            _adapt(schema)
            options: Any = {"whitespace_flexible": not params.disable_any_whitespace}
            if params.whitespace_pattern is not None:
                options["whitespace_pattern"] = params.whitespace_pattern
            elif not params.disable_any_whitespace:
                options["whitespace_pattern"] = _WHITESPACE
            text: str = matcher.grammar_from_json_schema(schema, defaults=options)
            return text
        if params.kind == "regex":
            return str(matcher.grammar_from_regex(_pattern(spec)))
        if params.kind == "choice":
            alternatives = " | ".join(json.dumps(c, ensure_ascii=False) for c in json.loads(spec))
            alternatives = alternatives.replace("\x7f", r"\u007f")  # which it takes only like that
            return str(matcher.grammar_from_lark(f"start: {alternatives}"))
        if "::=" in spec:
            spec = self._library.gbnf_to_lark.any_to_lark(spec)
        return str(matcher.grammar_from_lark(spec))


def _spelled(params: StructuredOutputsParams) -> str:
    """The text of a form without what escapes its characters."""
    spec = params.spec
    if params.kind in ("json", "choice"):
        spec = json.dumps(json.loads(spec), ensure_ascii=False)
    return spec.replace("\\", "")


def _without_forced_tokens(grammar: str) -> str:
    if grammar.lstrip().startswith("{"):
        (part,) = json.loads(grammar)["grammars"]
        schema = part.get("json_schema")
        grammar = part["lark_grammar"] if schema is None else f"start: %json {json.dumps(schema)}"
    return f'{grammar}\n%llguidance {{"no_forcing": true}}\n'


class MaskRoom:
    """Where masks of all tokens of the tokenizer are computed, to be cut to those of the model.

    The scheduler's thread fills one mask at a time.
    """

    def __init__(self, vocab_size: int, num_words: int) -> None:
        self._words = np.zeros(num_words, np.int32)
        self._last = np.full(-(-vocab_size // 32), -1, np.int32)
        if vocab_size % 32:
            self._last[-1] = (1 << vocab_size % 32) - 1

    def fill(self, matcher: Any, out: MaskRow) -> None:
        words = self._words
        matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
        np.bitwise_and(words[: len(out)], self._last, out=out)


class GuidanceForm:
    def __init__(self, matcher: Any, eos: frozenset[int], room: MaskRoom) -> None:
        # Copied, not made again: that recurses, and the stack of the scheduler's thread is small.
        self._matcher = matcher
        self._eos = eos
        self._room = room

    def start(self) -> Grammar:
        return GuidanceState(self._matcher.deep_copy(), self._eos, self._room)


class GuidanceState:
    restricts = True

    def __init__(self, matcher: Any, eos: frozenset[int], room: MaskRoom) -> None:
        self._matcher = matcher
        self._eos = eos
        self._room = room
        self.finished = False

    def fill_mask(self, out: MaskRow) -> None:
        self._room.fill(self._matcher, out)

    def accept(self, token_id: int) -> bool:
        taken = self._take(token_id)
        if self._matcher.is_error():  # a limit of the library, found while computing a mask
            raise GrammarError(self._matcher.get_error().partition("\n")[0][:500])
        return taken

    def _take(self, token_id: int) -> bool:
        if token_id in self._eos:
            # The library ends by itself where nothing but the end may follow.
            self.finished = bool(self._matcher.is_stopped() or self._matcher.is_accepting())
            return self.finished
        return bool(self._matcher.try_consume_tokens([token_id]))


def _close_objects(schema: Any) -> None:
    """Objects have no members but those named, at any depth."""
    for node in nodes(schema):
        if "properties" in node:
            node.setdefault("additionalProperties", False)


def _adapt(schema: Any) -> None:
    """Rewrite what llguidance 1.9.1 reads otherwise than JSON schema has it.

    Beside additionalItems it forgets prefixItems, though the former means nothing then. After the
    comma of an object it waits for names that a pattern has and "properties" has not, also where
    there are none.
    """
    for node in list(nodes(schema)):
        _join_covered(node)
        if not isinstance(node.get("items"), list):
            node.pop("additionalItems", None)
    rewrite_patterns(schema, _string_pattern)


def _join_covered(node: dict[str, Any]) -> None:
    """What a pattern says of declared members alone becomes a part of these."""
    declared, patterns = node.get("properties"), node.get("patternProperties")
    if not isinstance(declared, dict) or not isinstance(patterns, dict):
        return
    for pattern, part in list(patterns.items()):
        try:
            names = texts(found_in(read(pattern)), len(declared))
        except NotPlain:
            continue
        if names is None or not names <= declared.keys():
            continue
        for name in names:
            declared[name] = {"allOf": [declared[name], part]}
        del patterns[pattern]
    if not patterns:
        del node["patternProperties"]


def _pattern(pattern: str) -> str:
    """Of whole texts. Raises GrammarError."""
    written = _written(partial(text_for, RUST), pattern)
    return pattern if written is None else written


def _string_pattern(pattern: str) -> str:
    """Of strings in JSON. Raises GrammarError."""
    written = _written(string_for_guidance, pattern)
    if written is not None:
        return written
    return _SET_OF_OTHERS.sub(lambda found: found[1] or r"[^\x00", pattern)


def _written(write: Callable[[str], str], pattern: str) -> str | None:
    """None: to be kept, as the library reads it as Python does, or refuses it."""
    try:
        return write(pattern)
    except NotPlain as error:
        if error.elsewhere:
            return None
        raise GrammarError(f"patterns with {error} are not supported") from None
