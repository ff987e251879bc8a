"""Grammars by xgrammar (arXiv:2411.15100): most masks are computed at compilation."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from vllm.structured_output.cost import is_lark, num_optional
from vllm.structured_output.grammar import Grammar, GrammarError, MaskRow, num_words
from vllm.structured_output.notation import XGRAMMAR, string_for_xgrammar, text_for
from vllm.structured_output.pattern import NotPlain
from vllm.structured_output.schema import (
    MAX_WHITESPACE,
    limits_strings,
    rewrite_patterns,
    unenforced,
    with_tags_required,
)
from vllm.structured_output.structural_tag import (
    Content,
    contents,
    read_tag,
    with_contents,
    with_regexes,
)
from vllm.structured_params import StructuredOutputsParams
from vllm.transformers_utils.detokenizer import special_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# 250 in a row take half a second, 600 take four, 2000 minutes: the cube of their number.
_MAX_OPTIONAL = 250
# Of strings with a length xgrammar 0.2.8 lets characters be raw that JSON wants escaped.
_LOOSE_CHARACTER = r"""[^\"\\\r\n]"""
_HEX = re.compile(r"\\(?:\\|x([0-9a-f]{2}))")
_STRING_CHARACTER = r"""[^\0-\x1f\"\\\r\n]"""


class XGrammarBackend:
    """Compiles forms for one tokenizer. Thread-safe; compilation releases the interpreter lock."""

    name = "xgrammar"

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, vocab_size: int, eos_token_ids: Iterable[int]
    ) -> None:
        import xgrammar

        self._library = xgrammar
        self._eos_token_ids = sorted(eos_token_ids)
        info = xgrammar.TokenizerInfo.from_huggingface(
            tokenizer, vocab_size=vocab_size, stop_token_ids=self._eos_token_ids or None
        )
        self._compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)
        self._vocab_size = vocab_size
        # An end token is none of a form's text: the library knows where it may come.
        hidden = special_ids(tokenizer) - set(self._eos_token_ids)
        self._hidden = {
            token_id: str(tokenizer.convert_ids_to_tokens(token_id))
            for token_id in hidden
            if token_id < vocab_size
        }

    def rejects(self, params: StructuredOutputsParams) -> str | None:
        """Why this form is better left to another backend."""
        if num_optional(params) > _MAX_OPTIONAL:
            return f"more than {_MAX_OPTIONAL} optional parts in one sequence"
        if params.whitespace_pattern is not None:
            return "whitespace_pattern"
        if (problem := _unenforced(params)) is not None:
            return f"schemas with {problem}"
        if params.kind == "grammar" and is_lark(params.spec):
            return "grammars in Lark's notation"
        if params.kind == "regex":
            try:
                text_for(XGRAMMAR, params.spec)
            except NotPlain as error:
                return f"regular expressions with {error}"
        return None

    def compile(self, params: StructuredOutputsParams) -> XGrammarForm:
        """Raises GrammarError."""
        try:
            compiled = self._compile(params)
        except Exception as error:  # whatever the library raises, the form is at fault
            raise GrammarError(_reason(error)) from error
        return XGrammarForm(
            self._library,
            compiled,
            ends_by_itself=not self._eos_token_ids,
            drawable=self._drawable(params),
        )

    def _drawable(self, params: StructuredOutputsParams) -> MaskRow | None:
        """Tokens that may come where their text may; None: all.

        A special token has a text that the output lacks, so where the form allows that text it is
        written in other tokens. Markers that a grammar names are meant, and between tags the text
        is the model's own.
        """
        if params.kind == "structural_tag":
            return None
        spec = params.spec if params.kind == "grammar" else ""
        hidden = np.array([i for i, text in self._hidden.items() if text not in spec], np.int64)
        row = np.full(num_words(self._vocab_size), -1, np.int32)
        bits = np.left_shift(np.uint32(1), (hidden & 31).astype(np.uint32))
        np.bitwise_and.at(row.view(np.uint32), hidden >> 5, ~bits)
        return row

    def _compile(self, params: StructuredOutputsParams) -> Any:
        compiler, spec = self._compiler, params.spec
        if params.kind == "json":
            schema = with_tags_required(json.loads(spec))
            strict = params.disable_additional_properties
            return self._compile_schema(schema, params, strict)
        if params.kind == "json_object":
            # Of an object, which the builtin grammar of any JSON value is not.
            return self._compile_schema({"type": "object"}, params, strict=False)
        if params.kind == "regex":
            return compiler.compile_regex(text_for(XGRAMMAR, spec))
        if params.kind == "choice":
            alternatives = " | ".join(json.dumps(c, ensure_ascii=False) for c in json.loads(spec))
            return compiler.compile_grammar(f"root ::= {alternatives}")
        if params.kind == "structural_tag":
            tag = with_contents(
                with_regexes(read_tag(spec), partial(text_for, XGRAMMAR)),
                partial(self._checked_content, params),
            )
            return compiler.compile_structural_tag(tag)
        return compiler.compile_grammar(spec)

    def _compile_schema(self, schema: Any, params: StructuredOutputsParams, strict: bool) -> Any:
        grammar = self._library.Grammar.from_json_schema(
            json.dumps(rewrite_patterns(schema, string_for_xgrammar)),
            any_whitespace=not params.disable_any_whitespace,
            max_whitespace_cnt=MAX_WHITESPACE,
            strict_mode=strict,
        )
        if (text := _with_strict_strings(_printed(grammar))) is not None:
            grammar = self._library.Grammar.from_ebnf(text)
        return self._compiler.compile_grammar(grammar)

    def _checked_content(self, params: StructuredOutputsParams, content: Content) -> Any:
        """What a structural tag has between its ends, as a grammar where the library's is loose."""
        schema = rewrite_patterns(content["json_schema"], string_for_xgrammar)
        whitespace = content.get("max_whitespace_cnt") or MAX_WHITESPACE
        plain = content.keys() <= {"type", "json_schema", "max_whitespace_cnt", "any_order"}
        if plain and content.get("type", "json_schema") == "json_schema":
            grammar = self._library.Grammar.from_json_schema(
                json.dumps(schema),
                any_whitespace=not params.disable_any_whitespace,
                max_whitespace_cnt=whitespace,
                any_order=content.get("any_order") is True,
            )
            return {
                "type": "grammar",
                "grammar": _with_strict_strings(_printed(grammar)) or _printed(grammar),
            }
        bounded = {**content, "max_whitespace_cnt": whitespace}
        grammar = self._library.Grammar.from_structural_tag(
            {"type": "structural_tag", "format": bounded}
        )
        text = _with_strict_strings(_printed(grammar))
        return bounded if text is None else {"type": "grammar", "grammar": text}


class XGrammarForm:
    def __init__(
        self, library: Any, compiled: Any, ends_by_itself: bool, drawable: MaskRow | None
    ) -> None:
        self._library = library
        self._compiled = compiled
        self._ends_by_itself = ends_by_itself
        self._drawable = drawable

    def start(self) -> Grammar:
        return XGrammarState(
            self._library.GrammarMatcher(
                self._compiled, terminate_without_stop_token=self._ends_by_itself
            ),
            self._drawable,
        )


class XGrammarState:
    restricts = True

    def __init__(self, matcher: Any, drawable: MaskRow | None) -> None:
        self._matcher = matcher
        self._drawable = drawable

    @property
    def finished(self) -> bool:
        return bool(self._matcher.is_terminated())

    def fill_mask(self, out: MaskRow) -> None:
        if not self._matcher.fill_next_token_bitmask(out.reshape(1, -1), 0):
            out.fill(-1)  # the library leaves the row alone when everything is allowed
        if self._drawable is not None:
            np.bitwise_and(out, self._drawable, out=out)

    def accept(self, token_id: int) -> bool:
        return bool(self._matcher.accept_token(token_id))


def _unenforced(params: StructuredOutputsParams) -> str | None:
    """What of the JSON schemas in a form the library would not hold the output to, in words."""
    if params.kind == "json":
        return unenforced(with_tags_required(json.loads(params.spec)))
    if params.kind == "structural_tag":
        tag = read_tag(params.spec)
        try:
            with_regexes(tag, partial(text_for, XGRAMMAR))
        except NotPlain as error:
            return f"a regular expression with {error}"
        for content in contents(tag):
            if (problem := unenforced(content["json_schema"])) is not None:
                return problem
            if content.get("excludes") and limits_strings(content["json_schema"]):
                return "limits of strings beside excludes"
    return None


def _printed(grammar: Any) -> str:
    """A grammar as it is read again: of "\\xe9" the library reads all hexadecimal digits behind."""
    return _HEX.sub(lambda found: rf"\u00{found[1]}" if found[1] else found[0], str(grammar))


def _with_strict_strings(grammar: str) -> str | None:
    """The grammar with none but characters that JSON allows in strings; None: it is one already."""
    if _LOOSE_CHARACTER not in grammar:
        return None
    return grammar.replace(_LOOSE_CHARACTER, _STRING_CHARACTER)


def _reason(error: Exception) -> str:
    """The library's own words, without the place in its source."""
    text = re.sub(r"^\[[\d:]+\] \S+?:\d+: ", "", str(error).strip())
    text = re.sub(r"^Check failed: \(.*?\) is false: ", "", text)
    if isinstance(error, KeyError):
        return f"{text} is missing"
    return text[:500] or type(error).__name__
