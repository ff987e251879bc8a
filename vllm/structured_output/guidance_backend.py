"""Grammars by llguidance: masks are computed as they are needed, so compilation is instant."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from vllm.structured_output.cost import num_optional
from vllm.structured_output.grammar import Grammar, GrammarError, MaskRow
from vllm.structured_output.schema import nodes
from vllm.structured_params import StructuredOutputsParams

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# 4000 in a row take 0.15 s: the square of their number.
_MAX_OPTIONAL = 10_000
# Not where "]" or "-" stands for itself because it comes first.
_SET_OF_OTHERS = re.compile(r"(\\.)|\[\^(?![\]-])", re.DOTALL)


class GuidanceBackend:
    """Compiles forms for one tokenizer. Thread-safe."""

    name = "guidance"

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, vocab_size: int, eos_token_ids: Iterable[int]
    ) -> None:
        import llguidance
        import llguidance.hf

        eos = sorted(eos_token_ids)
        assert eos, "the compiler asks only where there is an end token"
        self._library = llguidance
        self._tokenizer = llguidance.hf.from_tokenizer(
            tokenizer,  # type: ignore[arg-type]  # a fast one, or the library says what is wrong
            n_vocab=vocab_size,
            eos_token=eos,
        )
        self._eos = frozenset(eos)

    def rejects(self, params: StructuredOutputsParams) -> str | None:
        if num_optional(params) > _MAX_OPTIONAL:
            return f"more than {_MAX_OPTIONAL} optional parts in one sequence"
        return "structural tags" if params.kind == "structural_tag" else None

    def compile(self, params: StructuredOutputsParams) -> GuidanceForm:
        """Raises GrammarError."""
        try:
            matcher = self._library.LLMatcher(self._tokenizer, self._grammar(params))
        except Exception as error:  # whatever the library raises, the form is at fault
            raise GrammarError(str(error)[:500] or type(error).__name__) from error
        if matcher.is_error():
            raise GrammarError(matcher.get_error().partition("\n")[0][:500])
        return GuidanceForm(matcher, self._eos)

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
            text: str = matcher.grammar_from_json_schema(schema, defaults=options)
            return text
        if params.kind == "regex":
            return str(matcher.grammar_from_regex(spec))
        if params.kind == "choice":
            alternatives = " | ".join(json.dumps(c, ensure_ascii=False) for c in json.loads(spec))
            return str(matcher.grammar_from_lark(f"start: {alternatives}"))
        if "::=" in spec:
            spec = self._library.gbnf_to_lark.any_to_lark(spec)
        return str(matcher.grammar_from_lark(spec))


class GuidanceForm:
    def __init__(self, matcher: Any, eos: frozenset[int]) -> None:
        # Copied, not made again: that recurses, and the stack of the scheduler's thread is small.
        self._matcher = matcher
        self._eos = eos

    def start(self) -> Grammar:
        return GuidanceState(self._matcher.deep_copy(), self._eos)


class GuidanceState:
    restricts = True

    def __init__(self, matcher: Any, eos: frozenset[int]) -> None:
        self._matcher = matcher
        self._eos = eos
        self.finished = False

    def fill_mask(self, out: MaskRow) -> None:
        self._matcher.unsafe_compute_mask_ptr(out.ctypes.data, out.nbytes)

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

    Beside additionalItems it forgets prefixItems, though the former means nothing then. Of a set of
    all characters but some, a quotation mark or a backslash that it leaves out may come escaped,
    unless it leaves out a control character too: so all of them leave out NUL.
    """
    for node in nodes(schema):
        if not isinstance(node.get("items"), list):
            node.pop("additionalItems", None)
        if isinstance(pattern := node.get("pattern"), str):
            node["pattern"] = _without_nul(pattern)
        if isinstance(patterns := node.get("patternProperties"), dict):
            node["patternProperties"] = {
                _without_nul(pattern): part for pattern, part in patterns.items()
            }


def _without_nul(pattern: str) -> str:
    return _SET_OF_OTHERS.sub(lambda found: found[1] or r"[^\x00", pattern)
