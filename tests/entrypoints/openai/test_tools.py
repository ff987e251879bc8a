from __future__ import annotations

import json

import httpx
import pytest
import pytest_asyncio

from tests.entrypoints.openai.sse import events_of
from vllm.errors import ConfigError
from vllm.structured_params import ReasoningFirst

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]
CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Paris"}}</tool_call>'
NAMED = {"type": "function", "function": {"name": "weather"}}
FLAGS = {"enable_auto_tool_choice": True, "tool_call_parser": "hermes", "reasoning_parser": "qwen3"}


@pytest_asyncio.fixture
async def client(make_app):
    transport = httpx.ASGITransport(app=make_app(**FLAGS), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
        yield client


async def ask(client, **body):
    messages = [{"role": "user", "content": "hi"}]
    body = {"messages": messages, "max_tokens": 500, "tools": TOOLS, **body}
    answer = await client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    return answer


async def whole(client, **body):
    return (await ask(client, **body)).json()["choices"][0]


async def streamed(client, **body):
    """The choice that the chunks of a stream add up to."""
    message = {"content": "", "reasoning_content": "", "tool_calls": []}
    reason = None
    for chunk in events_of((await ask(client, stream=True, **body)).text):
        (choice,) = chunk["choices"]
        reason = choice["finish_reason"] or reason
        delta = choice["delta"]
        for name in ("content", "reasoning_content"):
            message[name] += delta.get(name) or ""
        for piece in delta.get("tool_calls") or ():
            if piece.get("id"):
                message["tool_calls"].append({"name": piece["function"]["name"], "arguments": ""})
            message["tool_calls"][piece["index"]]["arguments"] += piece["function"]["arguments"]
    return message, reason


ANSWERS = [
    (f"<think>Hm.</think>Let me see. {CALL}", {}, "tool_calls"),
    (CALL + CALL, {"parallel_tool_calls": False}, "tool_calls"),
    ("<think>Hm.</think>It rains.", {}, "stop"),
    ("<tool_call>nonsense</tool_call>", {}, "stop"),
    ('[{"name": "weather", "parameters": {"city": "Rome"}}]', {"tool_choice": "required"}, None),
    ('{"city": "Rome"}', {"tool_choice": NAMED}, "tool_calls"),
    (CALL, {"tool_choice": "none"}, "stop"),
]


@pytest.mark.asyncio
@pytest.mark.parametrize(("text", "body", "reason"), ANSWERS)
async def test_a_stream_adds_up_to_the_whole_message(client, engine, text, body, reason) -> None:
    engine.text = text
    choice = await whole(client, **body)
    message, streamed_reason = await streamed(client, **body)
    calls = [call["function"] for call in choice["message"]["tool_calls"]]
    assert message["tool_calls"] == calls
    assert message["content"] == (choice["message"]["content"] or "")
    assert message["reasoning_content"] == (choice["message"].get("reasoning_content") or "")
    assert streamed_reason == choice["finish_reason"] == (reason or "tool_calls")
    assert all(json.loads(call["arguments"]) for call in calls)
    assert len(calls) == (choice["finish_reason"] == "tool_calls")


@pytest.mark.asyncio
async def test_a_call_that_is_cut_off_ends_with_length(client, engine) -> None:
    engine.text = CALL
    choice = await whole(client, max_tokens=60)
    assert choice["finish_reason"] == "length"


FORCED = '[{"name": "weather", "parameters": {"city": "Rome"}}]'


@pytest.mark.asyncio
@pytest.mark.parametrize("max_tokens", [1, 5, 13, 22, 30, 45])
async def test_a_forced_call_that_is_cut_off_is_no_content_on_any_endpoint(
    client, engine, max_tokens
) -> None:
    engine.text = FORCED
    choice = await whole(client, max_tokens=max_tokens, tool_choice="required")
    message, reason = await streamed(client, max_tokens=max_tokens, tool_choice="required")
    assert choice["finish_reason"] == reason == "length"
    assert choice["message"]["content"] == message["content"] == ""
    calls = [call["function"] for call in choice["message"]["tool_calls"]]
    assert calls == message["tool_calls"]
    assert [call["name"] for call in calls] == ["weather"] * (max_tokens >= 19)
    tool = TOOLS[0]["function"]
    for stream in (False, True):
        body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": max_tokens}
        body |= {"tools": [{"name": tool["name"], "input_schema": tool["parameters"]}]}
        body |= {"tool_choice": {"type": "any"}, "stream": stream}
        answer = await client.post("/v1/messages", json=body)
        assert answer.status_code == 200, answer.text
        assert ("tool_use" in answer.text) == bool(calls), answer.text
        assert r"[{\"" not in answer.text and "max_tokens" in answer.text
        body = {"input": "hi", "max_output_tokens": max_tokens, "stream": stream}
        body |= {"tools": [{"type": "function", **tool}], "tool_choice": "required"}
        answer = await client.post("/v1/responses", json=body)
        assert answer.status_code == 200, answer.text
        assert ("function_call" in answer.text) == bool(calls), answer.text
        assert "output_text.delta" not in answer.text and "incomplete" in answer.text


@pytest.mark.asyncio
@pytest.mark.parametrize("choice", ["required", NAMED])
async def test_the_content_of_a_forced_call_is_empty_and_that_of_another_is_null(
    client, engine, choice
) -> None:
    engine.text = FORCED
    assert (await whole(client, tool_choice=choice))["message"]["content"] == ""
    engine.text = CALL
    assert (await whole(client))["message"]["content"] is None


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("asked", "is_call"),
    [
        ({"response_format": {"type": "json_object"}}, False),
        ({"guided_regex": ".*"}, False),
        (
            {
                "response_format": {
                    "type": "structural_tag",
                    "structures": [{"begin": "<tool_call>", "schema": {}, "end": "</tool_call>"}],
                    "triggers": ["<tool_call>"],
                }
            },
            True,
        ),
    ],
    ids=str,
)
async def test_what_has_the_form_that_was_asked_for_is_no_call(client, engine, asked, is_call):
    engine.text = CALL
    choice = await whole(client, **asked)
    assert bool(choice["message"]["tool_calls"]) == is_call
    assert choice["message"]["content"] == (None if is_call else CALL)
    assert engine.seen[-1][1].skip_special_tokens != is_call


@pytest.mark.asyncio
async def test_without_a_marker_only_functions_of_the_request_are_called(make_app, engine) -> None:
    app = make_app(enable_auto_tool_choice=True, tool_call_parser="llama3_json")
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://s") as c:
        for text, is_call in (
            ('{"name": "Alice", "age": 3}', False),
            ('{"name": "weather", "parameters": 5}', False),
            ('{"name": "weather", "parameters": {"city": "Rome"}}', True),
        ):
            engine.text = text
            message = (await whole(c))["message"]
            assert bool(message["tool_calls"]) == is_call
            assert message["content"] == (None if is_call else text)


@pytest.mark.asyncio
async def test_calls_of_a_choice_that_is_forced_have_ids_of_the_model_s_kind(make_app, engine):
    app = make_app(enable_auto_tool_choice=True, tool_call_parser="mistral")
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://s") as c:
        engine.text = FORCED
        for choice in ("required", NAMED):
            (call,) = (await whole(c, tool_choice=choice))["message"]["tool_calls"]
            assert len(call["id"]) == 9 and call["id"].isalnum()


@pytest.mark.asyncio
@pytest.mark.parametrize("end", range(1, len("<think>Hm.</think>Yes.") + 1))
async def test_reasoning_that_is_cut_anywhere_is_the_same_streamed_and_not(client, engine, end):
    engine.text = "<think>Hm.</think>Yes."
    choice = await whole(client, max_tokens=end)
    message, reason = await streamed(client, max_tokens=end)
    assert reason == choice["finish_reason"] == "length"
    assert message["content"] == choice["message"]["content"]
    assert message["reasoning_content"] == (choice["message"].get("reasoning_content") or "")


@pytest.mark.asyncio
async def test_a_tool_choice_needs_tools(client) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
    for choice in ("auto", "required"):
        answer = await client.post("/v1/chat/completions", json={**body, "tool_choice": choice})
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "tool_choice"
    for more in ({"tool_choice": "none"}, {"tool_choice": "auto", "tools": []}):
        answer = await client.post("/v1/chat/completions", json={**body, **more})
        assert answer.status_code == 200, answer.text
    answer = await client.post("/v1/responses", json={"input": "hi", "tool_choice": "auto"})
    assert answer.status_code == 200, answer.text


@pytest.mark.asyncio
async def test_reasoning_may_be_left_out(client, engine) -> None:
    engine.text = "<think>Hm.</think>Yes."
    choice = await whole(client, include_reasoning=False)
    assert choice["message"]["content"] == "Yes."
    assert not choice["message"].get("reasoning_content")


@pytest.mark.asyncio
async def test_a_call_that_is_asked_for_has_a_grammar_that_begins_after_reasoning(
    client, engine
) -> None:
    engine.text = '<think>.</think>{"city": "x"}'
    await whole(client, tool_choice=NAMED)
    form = engine.seen[-1][1].structured_outputs
    assert json.loads(form.json)["properties"] == {"city": {"type": "string"}}
    assert form.reasoning == ReasoningFirst(
        starts=("<think>",), ends=("</think>",), is_open=False, is_spelled=False
    )


THINKING = {"role": "assistant", "content": "<think>text"}
ANSWERING = {"role": "assistant", "content": "<think>x</think>Once upon"}
CUT = {"role": "assistant", "content": "<think>text</thi"}


@pytest.mark.asyncio
@pytest.mark.parametrize("parser", ["qwen3", "deepseek_r1"])
@pytest.mark.parametrize("path", ["chat/completions", "messages"])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_message_goes_on_where_its_reasoning_is(make_app, engine, parser, path, stream):
    def of(answer) -> tuple[str, str]:
        """Reasoning and content."""
        found = {"reasoning_content": "", "content": "", "thinking": "", "text": ""}
        lines = [line[6:] for line in answer.text.splitlines() if line.startswith("data: {")]
        pieces = map(json.loads, lines) if stream else [answer.json()]
        for piece in pieces:
            parts = [c.get("delta") or c["message"] for c in piece.get("choices", ())]
            parts += piece["content"] if "content" in piece else [piece.get("delta") or {}]
            for part in parts:
                for name in found:
                    found[name] += part.get(name) or ""
        return found["reasoning_content"] + found["thinking"], found["content"] + found["text"]

    app = make_app(reasoning_parser=parser)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://s") as c:
        for last, text, reasoning, content in (
            (ANSWERING, " a time", "", " a time"),
            (THINKING, " more</think>Yes.", " more", "Yes."),
            (THINKING, " more", " more", ""),
            (CUT, "nk>Yes.", "", "Yes."),
            (CUT, "cket</think>Yes.", "cket", "Yes."),
        ):
            engine.text = text
            body = {
                "messages": [{"role": "user", "content": "a </think> b <think> c"}, last],
                "max_tokens": 100,
                "stream": stream,
            }
            if path != "messages":
                body |= {"continue_final_message": True, "add_generation_prompt": False}
                body["response_format"] = {"type": "json_object"}
            answer = await c.post(f"/v1/{path}", json=body)
            assert answer.status_code == 200, answer.text
            assert of(answer) == (reasoning, content)
            if path != "messages":
                form = engine.seen[-1][1].structured_outputs
                is_open = form.reasoning is not None and form.reasoning.is_open
                assert is_open == (last is not ANSWERING)
                assert not is_open or form.reasoning.begun == ("</thi" if last is CUT else "")


@pytest.mark.asyncio
@pytest.mark.parametrize("end", ["<think>", "</think>"])
async def test_markers_in_other_messages_neither_open_nor_end_reasoning(client, engine, end):
    engine.text = "<think>Hm.</think>Yes."
    messages = [
        {"role": "user", "content": f"What is </think> and <think> and {end}?"},
        {"role": "assistant", "content": f"<think>I do.</think>{end} is."},
        {"role": "tool", "content": f"{end} indeed"},
    ]
    message = (await whole(client, messages=messages))["message"]
    assert (message["reasoning_content"], message["content"]) == ("Hm.", "Yes.")
    await whole(client, messages=messages, tool_choice=NAMED)
    assert not engine.seen[-1][1].structured_outputs.reasoning.is_open


@pytest.mark.asyncio
async def test_special_tokens_are_shown_to_the_parser_only_where_calls_may_come(
    client, engine
) -> None:
    await whole(client)
    assert not engine.seen[-1][1].skip_special_tokens
    await whole(client, tool_choice="none")
    assert engine.seen[-1][1].skip_special_tokens


@pytest.mark.asyncio
async def test_markers_of_reasoning_are_shown_where_they_are_special_tokens(make_app, engine):
    engine.tokenizer.add_special_tokens({"additional_special_tokens": ["</think>"]})
    app = make_app(reasoning_parser="qwen3")
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://s") as c:
        await whole(c, tools=None)
    assert not engine.seen[-1][1].skip_special_tokens


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"enable_auto_tool_choice": True}, "--tool-call-parser"),
        ({"tool_call_parser": "hermez"}, "--tool-call-parser hermez"),
        ({"reasoning_parser": "nothing"}, "--reasoning-parser nothing"),
        ({"tool_parser_plugin": "/no/file.py"}, "--tool-parser-plugin /no/file.py"),
    ],
)
def test_flags_that_cannot_be_followed_are_refused_by_name(make_app, flags, said) -> None:
    with pytest.raises(ConfigError, match=said):
        make_app(**flags)
