"""Every notation of calls: whole, character by character, cut anywhere, and near misses."""

from __future__ import annotations

import json
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm.parsers.message import FirstCallOnly, MessageText, NamedCall, RequiredCalls
from vllm.parsers.tools.base import TOOL_PARSERS

Calls = list[tuple[str, object]]
DEEPSEEK = "<｜tool▁calls▁begin｜>{}<｜tool▁calls▁end｜>"
DEEPSEEK_CALL = "<｜tool▁call▁begin｜>{}<｜tool▁call▁end｜>"
SEP = "<｜tool▁sep｜>"
ARGS = {"city": 'Paris, }]) "x" \\ é 雨', "n": [1, {"a": None}], "f": {"t": True}}
TEXT = json.dumps(ARGS, ensure_ascii=False)


def call(name: str, key: str = "arguments") -> str:
    return json.dumps({"name": name, key: ARGS}, ensure_ascii=False)


def v3(name: str) -> str:
    return DEEPSEEK_CALL.format(f"function{SEP}{name}\n```json\n{TEXT}\n```")


def v31(name: str) -> str:
    return DEEPSEEK_CALL.format(f"{name}{SEP}{TEXT}")


F, G = ("f", ARGS), ("g_2", ARGS)
# notation, text, content, calls
CASES: list[tuple[str, str, str, Calls]] = [
    ("hermes", f"<tool_call>\n{call('f')}\n</tool_call>", "", [F]),
    (
        "hermes",
        f"<tool_call>{call('f')}</tool_call>\n<tool_call>{call('g_2')}</tool_call>",
        "\n",
        [F, G],
    ),
    ("hermes", f"Well. <tool_call>{call('f')}</tool_call> Done.", "Well.  Done.", [F]),
    ("hermes", '<tool_call>{"name": "f", "arguments": ""}</tool_call>', "", [("f", {})]),
    ("hermes", '<tool_call>{"name": "f", "arguments": null}</tool_call>', "", [("f", {})]),
    ("hermes", '<tool_call>{"name": "f"}</tool_call>', "", [("f", {})]),
    (
        "hermes",
        '<tool_call>{"arguments": {"a": 1}, "name": "f"}</tool_call>',
        "",
        [("f", {"a": 1})],
    ),
    (
        "hermes",
        '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>',
        "",
        [("f", {"a": 1})],
    ),
    ("hermes", f"<tool_call>{call('f')}", "", [F]),
    ("granite", f"<|tool_call|>[{call('f')}, {call('g_2')}]", "", [F, G]),
    ("granite", f"I will. <|tool_call|> [{call('f')}]", "I will. ", [F]),
    ("granite-20b-fc", f"<function_call> {call('f')} <function_call> {call('g_2')}", "", [F, G]),
    ("llama3_json", call("f", "parameters"), "", [F]),
    ("llama3_json", f"{call('f', 'parameters')}; {call('g_2', 'parameters')}", "", [F, G]),
    ("llama3_json", f"<|python_tag|>{call('f')}", "", [F]),
    ("llama3_json", f" \n{call('f')}", "", [F]),
    ("mistral", f"[TOOL_CALLS][{call('f')}, {call('g_2')}]", "", [F, G]),
    ("mistral", f"[TOOL_CALLS] [{call('f')}]", "", [F]),
    ("mistral", f"[TOOL_CALLS]f{TEXT}[TOOL_CALLS]g_2{TEXT}", "", [F, G]),
    ("mistral", f"So: [TOOL_CALLS]f[ARGS]{TEXT}", "So: ", [F]),
    ("deepseek_v3", DEEPSEEK.format(v3("f")), "", [F]),
    ("deepseek_v3", "Sure. " + DEEPSEEK.format(v3("f") + "\n" + v3("g_2")), "Sure. ", [F, G]),
    ("deepseek_v31", DEEPSEEK.format(v31("f") + v31("g_2")) + " Bye", " Bye", [F, G]),
    (
        "pythonic",
        "[f(a=1, b='x, )]', c=[1, {'k': None}], d=True, e=-2.5)]",
        "",
        [("f", {"a": 1, "b": "x, )]", "c": [1, {"k": None}], "d": True, "e": -2.5})],
    ),
    ("pythonic", "[f(), g.h(a=true, b=null)]", "", [("f", {}), ("g.h", {"a": True, "b": None})]),
    ("llama4_pythonic", "<|python_start|>[f(a=1)]<|python_end|>", "", [("f", {"a": 1})]),
    ("llama4_pythonic", "[f(a=1)]", "", [("f", {"a": 1})]),
]
# Texts that hold no call, whatever they look like: all of it is content.
PLAIN = [
    "",
    "Hello.",
    "a < b and <tool",
    "[1, 2, 3]",
    '{"a": 1}',
    "[TOOL",
    "f(a=1)",
    "[]",
    "é雨 [x",
]
BROKEN = [
    ("hermes", '<tool_call>{"nome": "f"}</tool_call>'),
    ("hermes", "<tool_call>f(1)</tool_call>"),
    ("hermes", "<tool_call></tool_call>"),
    ("granite", "<|tool_call|>none"),
    ("llama3_json", '{"a": {"b": 1}} and more'),
    ("mistral", "[TOOL_CALLS]what is it{"),
    ("pythonic", "[f(1, 2)]"),
    ("pythonic", "[f(a=__import__('os'))]"),
    ("pythonic", "[f(a=1"),
]


def parse(notation: str, pieces: Iterable[str]) -> tuple[str, Calls | list[tuple[str, str]]]:
    parser = TOOL_PARSERS.get(notation)()
    message = MessageText()
    for piece in pieces:
        message.add(parser.push(piece))
    message.add(parser.finish())
    assert len({call_id for call_id, _ in message.calls}) == len(message.calls)
    return message.content, [(c.name or "", c.arguments) for _, c in message.calls]


@pytest.mark.parametrize(("notation", "text", "content", "calls"), CASES)
def test_calls_are_read_from_a_whole_text(notation, text, content, calls):
    found_content, found = parse(notation, [text])
    assert [(name, json.loads(arguments)) for name, arguments in found] == calls
    assert found_content == content


@pytest.mark.parametrize("notation", TOOL_PARSERS.names())
@pytest.mark.parametrize("text", PLAIN)
def test_text_without_calls_is_content(notation, text):
    assert parse(notation, [text]) == (text, [])


@pytest.mark.parametrize(("notation", "text"), BROKEN)
def test_what_only_looks_like_a_call_stays_in_the_content(notation, text):
    content, calls = parse(notation, [text])
    assert calls == []
    for word in text.replace("<", " ").replace(">", " ").split():
        assert word in content


ALL_TEXTS = [(n, t) for n, t, _, _ in CASES] + BROKEN + [("hermes", t) for t in PLAIN]


@pytest.mark.parametrize(("notation", "text"), ALL_TEXTS)
def test_character_by_character_gives_what_the_whole_text_gives(notation, text):
    assert parse(notation, text) == parse(notation, [text])


@pytest.mark.parametrize(("notation", "text"), ALL_TEXTS)
def test_a_text_cut_anywhere_gives_the_same_in_pieces(notation, text):
    for end in range(0, len(text), max(1, len(text) // 40)):
        assert parse(notation, text[:end]) == parse(notation, [text[:end]])


@given(st.data())
def test_any_split_gives_the_same(data):
    notation, text = data.draw(st.sampled_from(ALL_TEXTS))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert parse(notation, pieces) == parse(notation, [text])


@given(
    st.sampled_from(TOOL_PARSERS.names()),
    st.lists(
        st.sampled_from(
            [
                "<tool_call>",
                "</tool_call>",
                "[TOOL_CALLS]",
                "<|tool_call|>",
                "<|python_tag|>",
                "{",
                '"name"',
                ":",
                '"f"',
                ",",
                '"arguments"',
                "}",
                "[",
                "]",
                "(",
                ")",
                "f",
                "=1",
                "\\",
                '"',
                "<｜tool▁calls▁begin｜>",
                "<｜tool▁call▁begin｜>",
                SEP,
                " ",
                "\n",
                "x",
                "[ARGS]",
            ]
        ),
        max_size=14,
    ),
)
def test_no_text_whatever_breaks_a_parser(notation, words):
    text = "".join(words)
    assert parse(notation, text) == parse(notation, [text])


def test_arguments_come_while_they_are_written():
    parser = TOOL_PARSERS.get("hermes")()
    seen = []
    for char in f"<tool_call>{call('f')}</tool_call>":
        seen += parser.push(char)
    assert len(seen) > len(TEXT) // 2
    assert seen[0].name == "f" and all(piece.name is None for piece in seen[1:])


def test_one_call_only_when_no_others_are_welcome():
    message = MessageText()
    parser = FirstCallOnly(RequiredCalls())
    for char in f"[{call('f', 'parameters')}, {call('g', 'parameters')}]":
        message.add(parser.push(char))
    message.add(parser.finish())
    assert [(c.name, json.loads(c.arguments)) for _, c in message.calls] == [("f", ARGS)]


UNMARKED = [
    ("llama3_json", '{"name": "f", "parameters": {"a": 1}}', True),
    ("llama3_json", '{"name": "Alice", "parameters": {"a": 1}}', False),
    ("llama3_json", '{"parameters": {"a": 1}, "name": "Alice"}', False),
    ("llama3_json", '{"name": "Alice", "age": 3}', False),
    ("llama3_json", '{"name": "f", "age": 3}', False),
    ("llama3_json", '<|python_tag|>{"name": "Alice", "parameters": {"a": 1}}', True),
    ("pythonic", "[f(a=1)]", True),
    ("pythonic", "[get weather(a=1)]", True),
    ("pythonic", "[print(a=1)]", False),
    ("llama4_pythonic", "[print(a=1)]", False),
    ("llama4_pythonic", "<|python_start|>[print(a=1)]<|python_end|>", True),
]


@pytest.mark.parametrize(("notation", "text", "is_call"), UNMARKED)
def test_without_a_marker_a_call_is_one_of_a_function_of_the_request(notation, text, is_call):
    for pieces in ([text], list(text)):
        parser = TOOL_PARSERS.get(notation)()
        parser.names = frozenset({"f", "get weather"})
        message = MessageText()
        for piece in pieces:
            message.add(parser.push(piece))
        message.add(parser.finish())
        assert [json.loads(found.arguments) for _, found in message.calls] == [{"a": 1}] * is_call
        assert message.content == ("" if is_call else text)


def test_a_list_that_cannot_become_a_call_is_content_at_once():
    parser = TOOL_PARSERS.get("pythonic")()
    parser.names = frozenset({"f"})
    assert parser.push("[Note: it's") and parser.push(" so]")


def test_a_name_that_does_not_end_is_given_up_soon():
    parser = TOOL_PARSERS.get("llama4_pythonic")()
    assert not parser.push("<|python_start|>[" + "x" * 200)
    assert parser.push("x" * 100)


def test_mistral_calls_have_ids_as_its_template_takes_them():
    message = MessageText()
    parser = TOOL_PARSERS.get("mistral")()
    message.add(parser.push("[TOOL_CALLS]f[CALL_ID]a1B2c3D4e[ARGS]{}"))
    message.add(parser.push("[TOOL_CALLS]f[CALL_ID]no id[ARGS]{}[TOOL_CALLS]f{}"))
    ids = [call_id for call_id, _ in message.calls]
    assert ids[0] == "a1B2c3D4e" and len(set(ids)) == 3
    assert all(len(call_id) == 9 and call_id.isalnum() for call_id in ids)


FORCED = json.dumps([{"name": name, "parameters": ARGS} for name in ("f", "g")])


@pytest.mark.parametrize("end", range(len(FORCED) + 1))
def test_a_forced_call_that_is_cut_gives_its_part_and_no_content(end):
    text = FORCED[:end]
    for pieces in ([text], list(text)):
        message = MessageText()
        parser = RequiredCalls()
        for piece in pieces:
            message.add(parser.push(piece))
        message.add(parser.finish())
        assert message.content == ""
        found = [(call.name, call.arguments) for _, call in message.calls]
        # A call is there once its name is.
        num_calls = sum(f'"name": "{name}"' in text for name in "fg")
        assert [name for name, _ in found] == ["f", "g"][:num_calls]
        assert all(json.dumps(ARGS).startswith(arguments) for _, arguments in found)


@pytest.mark.parametrize("value", ["5", '"abc"', '"[1]"', "[1, 2]", "true", "null", '""', "{}"])
def test_a_forced_call_has_the_arguments_that_its_schema_made(value):
    text = f'[{{"name": "f", "parameters": {value}}}]'
    for pieces in ([text], list(text)):
        message = MessageText()
        parser = RequiredCalls()
        for piece in pieces:
            message.add(parser.push(piece))
        message.add(parser.finish())
        assert [(call.name, call.arguments) for _, call in message.calls] == [("f", value)]


def test_a_named_call_is_its_arguments():
    message = MessageText()
    parser = NamedCall("f")
    for char in TEXT:
        message.add(parser.push(char))
    message.add(parser.finish())
    ((call_id, found),) = message.calls
    assert call_id.startswith("call_") and (found.name, found.arguments) == ("f", TEXT)
