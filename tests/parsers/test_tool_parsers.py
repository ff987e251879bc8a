from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.parsers.corpus import CASES, CORPUS, Case
from tests.parsers.feeding import fed, pieces_of
from vllm.parsers.tools.base import TOOL_PARSERS

NAMES = sorted(CORPUS)
# Pieces of markers and of calls, to be put together in any order.
FRAGMENTS = sorted(
    {piece for _, case in CASES for piece in case.text.replace("{", "\0{").split("\0")}
    | set('<>[]{}()",:;=\\ \n')
    | {"<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>", "f(", "function"}
    | {"<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"}
)


def parsed(name: str, *pieces: str):
    return fed(TOOL_PARSERS.get(name)(), pieces)


@pytest.mark.parametrize(("name", "case"), CASES)
def test_output_of_a_model_is_read_as_it_is_meant(name: str, case: Case) -> None:
    message = parsed(name, case.text)
    assert message.content == case.content
    assert [(n, json.loads(a)) for n, a in message.calls] == list(case.calls)


@pytest.mark.parametrize(("name", "case"), CASES)
def test_character_by_character_gives_the_same_at_every_point_of_truncation(
    name: str, case: Case
) -> None:
    for end in range(len(case.text) + 1):
        text = case.text[:end]
        assert parsed(name, *text) == parsed(name, text), text


@pytest.mark.parametrize(("name", "case"), CASES)
def test_a_truncated_text_loses_no_content_and_no_argument(name: str, case: Case) -> None:
    for end in range(len(case.text) + 1):
        message = parsed(name, case.text[:end])
        whole = parsed(name, case.text)
        if message.calls:
            for (name_a, part), (name_b, all_) in zip(message.calls, whole.calls, strict=False):
                assert name_a == name_b
                assert all_.startswith(part) or json.loads(part) == {}
        elif message.content != case.text[:end]:
            assert not message.content or case.text.startswith(message.content)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("name", NAMES)
def test_any_text_in_any_pieces_gives_what_it_gives_whole(name: str, data: st.DataObject) -> None:
    text = "".join(data.draw(st.lists(st.sampled_from(FRAGMENTS), max_size=8)))
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=6))
    whole = parsed(name, text)
    assert parsed(name, *pieces_of(text, cuts)) == whole
    assert parsed(name, *text) == whole


@settings(max_examples=30, deadline=None)
@given(text=st.text(max_size=60))
@pytest.mark.parametrize("name", NAMES)
def test_text_without_a_call_is_content_as_it_stands(name: str, text: str) -> None:
    message = parsed(name, text)
    assert (message.content, message.calls) == (text, [])


def test_arguments_are_passed_on_while_they_are_written() -> None:
    parser = TOOL_PARSERS.get("hermes")()
    parser.push('<tool_call>{"name": "f", "arguments": {"text": "one')
    (delta,) = parser.push(" two")
    assert delta.arguments == " two"
