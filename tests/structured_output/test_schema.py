"""What a JSON schema says is enforced by some backend, or the schema is refused."""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema
import pytest
from transformers import PreTrainedTokenizerBase

from tests.structured_output.conftest import EOS, allowed_by, can_be_whole, ready
from vllm.errors import BadRequest
from vllm.sampling_params import StructuredOutputsParams
from vllm.structured_output.compiler import GrammarCompiler
from vllm.structured_output.grammar import GrammarError
from vllm.structured_output.schema import MAX_WHITESPACE, unenforced, with_tags_required

STRING, INTEGER, OBJECT, ARRAY = (
    {"type": name} for name in ("string", "integer", "object", "array")
)
A_INT = {"type": "object", "properties": {"a": INTEGER}}
LONG_NAME = {"$defs": {"n": {"type": "string", "minLength": 2}}}

# A schema, a text that does not meet it, and one that does: xgrammar alone would take both.
LEFT_TO_GUIDANCE: list[tuple[dict[str, Any], str, str]] = [
    ({**INTEGER, "multipleOf": 7}, "8", "14"),
    ({"enum": [1, "a"], "type": "string"}, "1", '"a"'),
    ({"const": "a", "enum": ["b", "a"], "minLength": 1}, '"b"', '"a"'),
    ({"anyOf": [INTEGER, STRING], "minimum": 3}, "2", "4"),
    ({"anyOf": [INTEGER, STRING], "type": "string"}, "2", '"b"'),
    ({"allOf": [INTEGER, {"minimum": 3}]}, "2", "3"),
    ({"$ref": "#/$defs/n", "maxLength": 3, **LONG_NAME}, '"aaaa"', '"aaa"'),
    ({"minLength": 2}, '"a"', '"aa"'),
    ({"minimum": 2}, "1", "2"),
    ({"required": ["a"]}, "{}", '{"a": 1}'),
    ({"maxItems": 1}, "[1, 1]", "[1]"),
    ({"additionalProperties": False}, '{"a": 1}', "{}"),
    ({"patternProperties": {"b": INTEGER}}, '{"b": {}}', '{"b": 1}'),
    ({"properties": {"a": {"minLength": 2}}}, '{"a": "a"}', '{"a": "aa"}'),
    ({**STRING, "pattern": "^a+$", "maxLength": 2}, '"aaa"', '"aa"'),
    ({**STRING, "pattern": '^[^"]*$', "maxLength": 3}, r'"a\"b"', '"a/b"'),
    ({**STRING, "pattern": r"^[^\\a]*$", "maxLength": 3}, r'"b\\b"', r'"b\"b"'),
    (
        {**ARRAY, "prefixItems": [{"minLength": 2}], "additionalItems": False},
        '["a"]',
        '["aa"]',
    ),
    ({**STRING, "format": "date"}, '"2020-02-31"', '"2020-02-28"'),
    ({**STRING, "format": "ipv4"}, '"01.1.1.1"', '"1.1.1.1"'),
    ({**OBJECT, "required": ["a"], "properties": {"b": INTEGER}}, '{"b": 1}', '{"b": 1, "a": 2}'),
]
# Nothing enforces all of these.
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({**ARRAY, "uniqueItems": True}, "[1, 1]"),
    ({**ARRAY, "contains": INTEGER}, "[]"),
    ({**ARRAY, "contains": {}, "maxContains": 1}, "[1, 1]"),
    ({**STRING, "not": {"const": "a"}}, '"a"'),
    ({"if": A_INT, "then": {"required": ["b"]}}, '{"a": 1}'),
    ({**A_INT, "dependentRequired": {"a": ["b"]}}, '{"a": 1}'),
    ({**A_INT, "dependentSchemas": {"a": {"required": ["b"]}}}, '{"a": 1}'),
    ({**A_INT, "dependencies": {"a": ["b"]}}, '{"a": 1}'),
    ({"anyOf": [A_INT], "unevaluatedProperties": False}, '{"b": 1}'),
    ({**ARRAY, "unevaluatedItems": False}, "[1]"),
    ({"$dynamicRef": "#/$defs/n", **LONG_NAME}, '"a"'),
    ({"oneOf": [INTEGER, {"type": "number"}]}, "1"),
    ({"oneOf": [{"const": 1}, {"const": 1.0}]}, "1"),
    ({"oneOf": [{"const": {"a": [1]}}, {"const": {"a": [1.0]}}]}, '{"a": [1]}'),
    ({"oneOf": [{"type": "boolean"}, {"properties": {"a": INTEGER}}]}, "true"),
    ({"oneOf": [A_INT, {**OBJECT, "properties": {"b": INTEGER}}]}, '{"a": 1, "b": 1}'),
    ({**OBJECT, "patternProperties": {"a": INTEGER, "b": STRING}}, '{"ab": 1}'),
    ({**OBJECT, "propertyNames": {"minLength": 2}, "additionalProperties": False}, '{"aa": 1}'),
    ({**OBJECT, "propertyNames": {"maxLength": 1}, "properties": {"aa": {}}}, '{"aa": 1}'),
    ({**OBJECT, "propertyNames": {"anyOf": [{"minLength": 2}]}}, '{"a": 1}'),
    ({**OBJECT, "propertyNames": {"allOf": [{"minLength": 2}]}}, '{"a": 1}'),
    ({**OBJECT, "propertyNames": {"not": {"const": "a"}}}, '{"a": 1}'),
    ({**STRING, "maxLength": -1}, '"a"'),
    ({"type": []}, "1"),
    ({"type": ["string"] * 9 + ["a", "b", "c", "d", "e", "f", "g"]}, '"a"'),
    ({"$ref": "http://127.0.0.1:9/schema.json"}, "1"),
    ({"properties": {"a": {"$id": "x", "$defs": {"n": STRING}, "$ref": "#/$defs/n"}}}, '{"a": 1}'),
    ({"patternProperties": 3}, "1"),
]
# What xgrammar does enforce stays with it.
KEPT: list[tuple[dict[str, Any], str, str]] = [
    ({**OBJECT, "propertyNames": {"minLength": 2}}, '{"a": 1}', '{"aa": 1}'),
    ({**OBJECT, "propertyNames": {"enum": ["a"]}}, '{"b": 1}', '{"a": 1}'),
    ({**OBJECT, "propertyNames": {"$ref": "#/$defs/n"}, **LONG_NAME}, '{"a": 1}', '{"aa": 1}'),
    ({"oneOf": [STRING, INTEGER, {"enum": [True, None]}]}, "false", "true"),
    ({"const": "a", "type": "string"}, '"b"', '"a"'),
    ({**STRING, "maxLength": 2}, '"\t"', '"aa"'),
    ({**STRING, "maxLength": 2, "minLength": 2}, '"a"', '"aa"'),
    (
        {
            "oneOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}],
            "discriminator": {"propertyName": "k"},
            "$defs": {
                "a": {**OBJECT, "properties": {"k": {"const": "a"}, "a": INTEGER}},
                "b": {**OBJECT, "properties": {"k": {"const": "b"}, "a": INTEGER}},
            },
        },
        '{"a": 1}',
        '{"k": "b", "a": 1}',
    ),
]


def grammar_of(compiler: GrammarCompiler, schema: Any, backend: str | None = None) -> Any:
    return ready(compiler.submit(StructuredOutputsParams(json=schema, backend=backend)))


@pytest.mark.parametrize(("schema", "wrong", "right"), [*LEFT_TO_GUIDANCE, *KEPT], ids=str)
def test_only_what_meets_a_schema_can_come(
    schema: dict[str, Any],
    wrong: str,
    right: str,
    compiler: GrammarCompiler,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    assert can_be_whole(right, grammar_of(compiler, schema), tokenizer)
    assert not can_be_whole(wrong, grammar_of(compiler, schema), tokenizer)


@pytest.mark.parametrize(
    "schema", [row[0] for row in LEFT_TO_GUIDANCE] + [row[0] for row in REFUSED], ids=str
)
def test_xgrammar_says_what_it_would_not_enforce(
    schema: dict[str, Any], compiler: GrammarCompiler
) -> None:
    with pytest.raises(GrammarError, match="xgrammar does not support schemas with"):
        grammar_of(compiler, schema, "xgrammar")


@pytest.mark.parametrize(("schema", "wrong", "right"), KEPT, ids=str)
def test_xgrammar_keeps_what_it_enforces(
    schema: dict[str, Any], wrong: str, right: str, compiler: GrammarCompiler
) -> None:
    grammar_of(compiler, schema, "xgrammar")


@pytest.mark.parametrize(("schema", "wrong"), REFUSED, ids=str)
def test_what_no_backend_enforces_is_refused_or_cannot_come(
    schema: dict[str, Any],
    wrong: str,
    compiler: GrammarCompiler,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    try:
        grammar = grammar_of(compiler, schema)
    except GrammarError:
        return
    assert not can_be_whole(wrong, grammar, tokenizer)


def test_a_value_is_not_taken_for_a_schema(
    compiler: GrammarCompiler, tokenizer: PreTrainedTokenizerBase
) -> None:
    value = {"pattern": "[^a]", "properties": {"not": 1}}
    schema = {"enum": [value, 5]}
    for backend in ("xgrammar", "guidance"):
        params = StructuredOutputsParams(
            json=schema, backend=backend, disable_additional_properties=True
        )
        for text in (json.dumps(value, separators=(",", ":")), "5"):
            assert can_be_whole(text, ready(compiler.submit(params)), tokenizer)


HOSTILE_VALUES = ({}, [], [{}], [[]], 5, -1, 1e300, True, None, "", "#", {"a": 5}, [5, "a"])
KEYWORDS = (
    "type format enum const properties required $ref $defs $id anyOf oneOf allOf not items "
    "prefixItems additionalProperties patternProperties propertyNames minLength maxLength pattern "
    "minimum multipleOf minItems minProperties discriminator"
).split()


@pytest.mark.parametrize("keyword", KEYWORDS)
def test_a_keyword_may_hold_anything(keyword: str, compiler: GrammarCompiler) -> None:
    for value in HOSTILE_VALUES:
        for base in ({}, {"type": "object"}, {"oneOf": [{keyword: value}, {"type": "object"}]}):
            schema = {**base, keyword: value}
            for backend in (None, "xgrammar", "guidance"):
                try:
                    grammar_of(compiler, schema, backend)
                except GrammarError as error:
                    assert str(error), schema


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_number_that_json_does_not_have_is_refused(value: float) -> None:
    with pytest.raises(BadRequest, match="cannot be written as JSON"):
        StructuredOutputsParams(json={"enum": [value]})


WIDE = {
    "type": "object",
    "properties": {f"p{i}": {"const": i} for i in range(1500)},
    "required": [f"p{i}" for i in range(1500)],
}
PART = {"$ref": "#/$defs/x"}


@pytest.mark.parametrize(
    "schema",
    [
        {"$defs": {"x": WIDE}, "oneOf": [PART] * 3000},
        {"$defs": {"x": WIDE}, "anyOf": [{"oneOf": [PART, {"type": "object"}]}] * 1500},
        {"$defs": {"x": {"enum": list(range(9000))}}, "anyOf": [{"oneOf": [PART, {}]}] * 1400},
        {"oneOf": [{"type": []}] * 6000 + [{"const": i} for i in range(3000)]},
    ],
    ids=["one part", "many unions", "values", "no types"],
)
def test_alternatives_too_many_to_compare_are_taken_to_overlap(schema: dict[str, Any]) -> None:
    assert unenforced(schema) is not None


def test_a_large_part_that_many_refer_to_is_not_written_out_for_each() -> None:
    part = {**WIDE, "required": []}
    union = {"oneOf": [PART], "discriminator": {"propertyName": "p1"}}
    schema = {"$defs": {"x": part}, "anyOf": [union] * 1500}
    once = len(json.dumps(schema))
    assert len(json.dumps(with_tags_required(json.loads(json.dumps(schema))))) < 4 * once


@pytest.mark.parametrize("text", ["née", "éa", "日本fa", '"\\ü1', "\u2028e", "😀0"], ids=ascii)
@pytest.mark.parametrize("backend", ["xgrammar", "guidance"])
def test_any_text_may_be_a_value_or_a_name_beside_a_limited_string(
    text: str, backend: str, compiler: GrammarCompiler, tokenizer: PreTrainedTokenizerBase
) -> None:
    members = {text: {"enum": [text, 1]}, "b": {**STRING, "maxLength": 2}}
    schema = {**OBJECT, "properties": members, "required": [text, "b"]}
    value = json.dumps({text: text, "b": "x"}, ensure_ascii=False)
    assert can_be_whole(value, grammar_of(compiler, schema, backend), tokenizer)


ONE = {"const": 1}
CLOSED = {**OBJECT, "properties": {"a": ONE, "b": ONE}, "additionalProperties": False}


@pytest.mark.parametrize(
    "patterns",
    [{"^a$": ONE}, {"^[ab]$": ONE}, {"^(a|b)?b?$": {}}, {"^a$": {}, "^b$": ONE}, {"^[ac]$": {}}],
    ids=str,
)
def test_an_object_can_always_end(
    patterns: dict[str, Any], compiler: GrammarCompiler, tokenizer: PreTrainedTokenizerBase
) -> None:
    schema = {**CLOSED, "patternProperties": patterns}
    rng = random.Random(8)
    for _ in range(12):
        grammar = grammar_of(compiler, schema)
        ids: list[int] = []
        while not grammar.finished:
            allowed = set(allowed_by(grammar, len(tokenizer)).tolist())
            # Whitespace and more members only as long as they may come at all.
            ending = [t for t in allowed if set(tokenizer.decode([t])) <= set('}1"ab:')]
            ids.append(rng.choice(ending or sorted(allowed)) if EOS not in allowed else EOS)
            assert grammar.accept(ids[-1]) and len(ids) < 400
        jsonschema.validate(json.loads(tokenizer.decode(ids[:-1])), schema)


def test_what_a_pattern_says_of_a_declared_member_is_kept(
    compiler: GrammarCompiler, tokenizer: PreTrainedTokenizerBase
) -> None:
    schema = {
        **OBJECT,
        "properties": {"a": INTEGER},
        "patternProperties": {"^a$": {"minimum": 5}},
        "additionalProperties": False,
    }
    assert can_be_whole('{"a": 5}', grammar_of(compiler, schema), tokenizer)
    assert not can_be_whole('{"a": 4}', grammar_of(compiler, schema), tokenizer)


@pytest.mark.parametrize("backend", ["xgrammar", "guidance"])
@pytest.mark.parametrize(
    ("schema", "before", "behind"),
    [
        ({**OBJECT, "properties": {"a": INTEGER}, "required": ["a"]}, '{"a": 1', "}"),
        ({**OBJECT, "properties": {"a": INTEGER}, "required": ["a"]}, '{"a":', "1}"),
        ({**OBJECT, "properties": {"a": INTEGER}, "required": ["a"]}, "{", '"a":1}'),
        ({**ARRAY, "items": INTEGER}, "[1,", "1]"),
        ({**ARRAY, "items": INTEGER}, "[", "]"),
        ({}, '{"a":', "[]}"),
    ],
    ids=str,
)
def test_whitespace_is_bounded(
    schema: dict[str, Any],
    before: str,
    behind: str,
    backend: str,
    compiler: GrammarCompiler,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    for number, may_come in ((MAX_WHITESPACE, True), (MAX_WHITESPACE + 1, False)):
        text = before + "\n" * number + behind
        grammar = grammar_of(compiler, schema, backend)
        assert can_be_whole(text, grammar, tokenizer) is may_come
