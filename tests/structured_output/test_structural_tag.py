"""Tags with JSON inside of free text."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from tests.structured_output.conftest import can_be_whole, ready
from vllm.sampling_params import StructuredOutputsParams
from vllm.structured_output.compiler import GrammarCompiler
from vllm.structured_output.grammar import GrammarError

SHORT = {"type": "string", "maxLength": 3}
SCHEMA = {"type": "object", "properties": {"a": SHORT, "b": SHORT}, "required": ["a"]}
CONTENT: dict[str, Any] = {"type": "json_schema", "json_schema": SCHEMA}


def triggered(content: dict[str, Any]) -> dict[str, Any]:
    tags = [
        {"type": "tag", "begin": begin, "content": content, "end": "</f>"}
        for begin in ("<f>", "<fg>")
    ]
    return {
        "type": "structural_tag",
        "format": {"type": "triggered_tags", "triggers": ["<f"], "tags": tags},
    }


def before_formats(schema: Any) -> dict[str, Any]:
    structures = [{"begin": begin, "schema": schema, "end": "</f>"} for begin in ("<f>", "<fg>")]
    return {"structures": structures, "triggers": ["<f"]}


NOTATIONS = [
    triggered(CONTENT),
    triggered({"json_schema": SCHEMA}),
    triggered({**CONTENT, "any_order": True}),
    triggered({**CONTENT, "style": "json"}),
    triggered({"type": "sequence", "elements": [CONTENT]}),
    before_formats(SCHEMA),
    before_formats('{"type": "object", "properties": {"a": {"type": "string", "maxLength": 3}}}'),
]


@pytest.mark.parametrize("tag", NOTATIONS, ids=str)
def test_json_in_a_tag_is_valid_json(
    tag: dict[str, Any], compiler: GrammarCompiler, tokenizer: PreTrainedTokenizerBase
) -> None:
    params = StructuredOutputsParams(structural_tag=tag)
    for text, valid in {
        'so <f>{"a": "xyz"}</f> and <fg>{"a": ""}</f>!': True,
        "no tag\tat all": True,
        '<f>{"a": "x\ty"}</f>': False,
        '<f>{"a": "\x1f"}</f>': False,
        '<fg>{"a": "\n"}</f>': False,
        '<f>{"a": "wxyz"}</f>': False,
        '<f>{"a": 1}</f>': False,
        '<f>{"a": "x"}': False,
    }.items():
        assert can_be_whole(text, ready(compiler.submit(params)), tokenizer) is valid, text


def test_json_inside_of_other_markup_is_valid_json(
    compiler: GrammarCompiler, tokenizer: PreTrainedTokenizerBase
) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "array", "items": SHORT}},
        "required": ["a"],
    }
    content = {"type": "json_schema", "json_schema": schema, "style": "qwen_xml"}
    tag = StructuredOutputsParams(structural_tag=triggered(content))
    for inner, valid in {'["x y"]': True, '["x\ty"]': False}.items():
        text = f"<f><parameter=a>{inner}</parameter></f>"
        assert can_be_whole(text, ready(compiler.submit(tag)), tokenizer) is valid, text


def test_whitespace_in_a_tag_can_be_disabled(
    compiler: GrammarCompiler, tokenizer: PreTrainedTokenizerBase
) -> None:
    tag = StructuredOutputsParams(structural_tag=triggered(CONTENT), disable_any_whitespace=True)
    for text, valid in {
        '<f>{"a": "x"}</f>': True,
        '<f>{"a":   "x"}</f>': False,
        '<f>{ "a": "x"}</f>': False,
    }.items():
        assert can_be_whole(text, ready(compiler.submit(tag)), tokenizer) is valid, text


@pytest.mark.parametrize(
    ("tag", "reason"),
    [
        (triggered({"type": "json_schema", "json_schema": {"uniqueItems": True}}), "uniqueItems"),
        (before_formats({"type": "integer", "multipleOf": 3}), "multipleOf"),
        (before_formats('{"type": "integer", "multipleOf": 3}'), "multipleOf"),
        (triggered({**CONTENT, "excludes": ["x"]}), "beside excludes"),
        (triggered({"type": "grammar", "grammar": 'root ::= "x"? ' + '"a"? ' * 300}), "optional"),
        (before_formats("{"), "not valid JSON"),
        (before_formats("[" * 5000), "not valid JSON"),
        (before_formats(5), "object"),
        ({"structures": [5], "triggers": []}, "each of structures"),
        ({"structures": [{"begin": "a"}], "triggers": []}, "each of structures"),
        ({"structures": {}, "triggers": []}, "structures must be a list"),
        ({"structures": []}, "triggers must be a list"),
        ({"format": 5}, "ormat"),
        (True, "must be an object"),
    ],
    ids=str,
)
def test_a_tag_that_cannot_be_enforced_is_refused(
    tag: Any, reason: str, compiler: GrammarCompiler
) -> None:
    with pytest.raises(GrammarError, match=reason):
        ready(compiler.submit(StructuredOutputsParams(structural_tag=tag)))
