from __future__ import annotations

from collections.abc import Iterable

import pytest

from vllm.parsers.message import Message, MessageText
from vllm.parsers.reasoning.base import REASONING_PARSERS
from vllm.parsers.tools.base import TOOL_PARSERS

# notation, end of the prompt, text, reasoning, content
CASES = [
    ("deepseek_r1", "<assistant>", "Hm.</think>Yes.", "Hm.", "Yes."),
    ("deepseek_r1", "<assistant>", "<think>Hm.</think>Yes.", "Hm.", "Yes."),
    ("deepseek_r1", "<assistant><think>\n", "Hm.</think>\n\nYes.", "Hm.", "\n\nYes."),
    ("deepseek_r1", "<assistant>", "cut off </thi", "cut off </thi", ""),
    ("deepseek_r1", "<think>\n</think>\n", "Yes.", "", "Yes."),
    ("deepseek_r1", "", "a < b </think> c <think>", "a < b ", " c <think>"),
    ("qwen3", "", "<think>\nHm.\n</think>\nYes.", "\nHm.\n", "\nYes."),
    ("qwen3", "", "\n<think>Hm.</think>Yes.", "Hm.", "Yes."),
    ("qwen3", "", "Yes. <think>no</think>", "", "Yes. <think>no</think>"),
    ("qwen3", "", "<thin ice>", "", "<thin ice>"),
    ("qwen3", "", "<think>cut", "cut", ""),
    ("qwen3", "", "<thi", "", "<thi"),
    ("qwen3", "<think>\n", "Hm.</think>Yes.", "Hm.", "Yes."),
    ("qwen3", "<think>\n\n</think>\n\n", "<think> is a word.", "", "<think> is a word."),
    ("granite", "", "Here is my thought process: Hm. Here is my response: Yes.", " Hm. ", " Yes."),
    ("granite", "", "Here's my thought process:Hm.Here's my response:Yes.", "Hm.", "Yes."),
    ("granite", "", "Here is a fox.", "", "Here is a fox."),
    ("granite", "", "", "", ""),
    # The prompt ends within a marker.
    ("qwen3", "<think>text</thi", "nk>Yes.", "", "Yes."),
    ("qwen3", "<think>text</thi", "s.</think>Yes.", "s.", "Yes."),
    ("qwen3", "<think>a <", "</think>Yes.", "", "Yes."),
    ("qwen3", "<thi", "nk>Hm.</think>Yes.", "Hm.", "Yes."),
    ("qwen3", "<thi", "n ice>", "", "n ice>"),
    ("qwen3", "<think>x</think>a <", "think>", "", "think>"),
    ("deepseek_r1", "Hm.</", "think>Yes.", "", "Yes."),
    ("deepseek_r1", "a <", " b", " b", ""),
    ("granite", "Here is my", " thought process: Hm. Here is my response: Yes.", " Hm. ", " Yes."),
    ("granite", "Here's my thought process: Hm. Here is", " my response: Yes.", "", " Yes."),
    ("granite", "Here is my", " fox.", "", " fox."),
]


def parse(notation: str, prompt: str, pieces: Iterable[str]) -> tuple[str, str]:
    parser = REASONING_PARSERS.get(notation)(prompt)
    message = MessageText()
    for piece in pieces:
        message.add(parser.push(piece))
    message.add(parser.finish())
    return message.reasoning, message.content


@pytest.mark.parametrize(("notation", "prompt", "text", "reasoning", "content"), CASES)
def test_reasoning_and_content_are_told_apart(notation, prompt, text, reasoning, content):
    assert parse(notation, prompt, [text]) == (reasoning, content)


@pytest.mark.parametrize(("notation", "prompt", "text"), [case[:3] for case in CASES])
def test_character_by_character_and_cut_anywhere_gives_the_same(notation, prompt, text):
    for end in range(len(text) + 1):
        assert parse(notation, prompt, text[:end]) == parse(notation, prompt, [text[:end]])


def test_calls_in_reasoning_are_thoughts_and_calls_after_it_are_calls():
    call = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    text = f"<think>I might {call}</think>Now: {call}"
    parser = Message(REASONING_PARSERS.get("qwen3")(""), TOOL_PARSERS.get("hermes")())
    message = MessageText()
    for char in text:
        message.add(parser.push(char))
    message.add(parser.finish())
    assert message.reasoning == f"I might {call}"
    assert message.content == "Now: "
    assert [found.name for _, found in message.calls] == ["f"] and parser.has_calls
