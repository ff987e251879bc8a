"""Forms that would take minutes to compile are known by their text."""

from __future__ import annotations

from typing import Any

import pytest

from vllm.structured_output.cost import num_optional
from vllm.structured_params import MAX_SPEC_CHARS, StructuredOutputsParams


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ({"regex": "a?b*(c|)"}, 3),
        ({"regex": "ab|cd{3}"}, 0),
        ({"grammar": 'root ::= a a b\na ::= "x"? | ""\nb ::= "names? in quotes*"'}, 3),
        ({"grammar": "root ::= " + '"a"? ' * 300}, 300),
        ({"json": {"properties": {"a": {"pattern": "a?" * 9}}}}, 9),
        ({"json": {"properties": {f"p{i}": {} for i in range(80)}}}, 10),
        ({"choice": ["a?", "b"]}, 0),
        ({"json_object": True}, 0),
    ],
)
def test_optional_parts_are_counted_in_the_longest_sequence(
    form: dict[str, Any], expected: int
) -> None:
    assert num_optional(StructuredOutputsParams(**form)) == expected


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ({"grammar": 'root ::= "" a "b?" "" [?*"] "c*"'}, 3),
        ({"grammar": 'root ::= ["] a? ["] # b? c?'}, 2),
        ({"grammar": 'start: a /x?y*/ "b?"\na: "z"'}, 3),
        ({"json": {"type": "object", "patternProperties": {"a?b?c?": {}}}}, 3),
        ({"structural_tag": {"format": {"type": "grammar", "grammar": 'root ::= "a"? "b"?'}}}, 2),
        ({"structural_tag": {"format": {"type": "regex", "pattern": "a?b?"}}}, 2),
        ({"regex": ")" + "a?" * 2}, 2),
    ],
)
def test_texts_sets_and_comments_of_a_grammar_are_not_parts(
    form: dict[str, Any], expected: int
) -> None:
    assert num_optional(StructuredOutputsParams(**form)) == expected


# Expressions that try again from every character would take minutes, and nothing else could run.
@pytest.mark.parametrize("unit", ['"', '\\"', "\n", " ", "[", "[\\", "/\\", "#", "a\n \n", "a.-"])
@pytest.mark.parametrize("start", ["", '"', "root ::= ", "start: /"])
def test_a_grammar_of_any_text_is_read_in_one_pass(start: str, unit: str) -> None:
    text = start + unit * ((MAX_SPEC_CHARS - 20) // len(unit)) + "x\n"
    assert num_optional(StructuredOutputsParams(grammar=text)) >= 0
