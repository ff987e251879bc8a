"""Forms that would take minutes to compile are known by their text."""

from __future__ import annotations

from typing import Any

import pytest

from vllm.structured_output.cost import num_optional
from vllm.structured_params import StructuredOutputsParams


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
