"""/v1/messages on an engine that answers at once and exactly."""

import json

import httpx
import pytest
import pytest_asyncio

from vllm.entrypoints.openai.protocol.messages import CountTokensRequest
from vllm.entrypoints.openai.serving.message_input import chat_messages
from vllm.errors import EngineDeadError

HELLO = {"max_tokens": 100, "messages": [{"role": "user", "content": "hi"}]}
TOOL = {"name": "weather", "description": "now", "input_schema": {"type": "object"}}
CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Ulm"}}</tool_call>'


@pytest_asyncio.fixture
async def clever(make_app):
    """A server whose model reasons and calls functions."""
    app = make_app(
        enable_auto_tool_choice=True, tool_call_parser="hermes", reasoning_parser="qwen3"
    )
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
        yield client


async def post(client, path="/v1/messages", **body):
    response = await client.post(path, json={**HELLO, **body})
    assert response.status_code == 200, response.text
    return response.json()


async def stream(client, **body):
    response = await client.post("/v1/messages", json={**HELLO, **body, "stream": True})
    assert response.status_code == 200, response.text
    events = []
    for event in response.text.strip().split("\n\n"):
        name, data = event.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    return events


async def prompt(client, engine, **body):
    await post(client, **body)
    return engine.seen[-1][0]["prompt"]


async def test_an_answer_is_a_message_with_a_block_of_text(client):
    answer = await post(client)
    assert answer["content"] == [
        {"type": "text", "text": "and they lived happily.", "citations": None}
    ]
    assert (answer["type"], answer["role"], answer["stop_reason"]) == (
        "message",
        "assistant",
        "end_turn",
    )
    assert answer["usage"]["output_tokens"] == 23
    # Those of the cache are not among the input's.
    assert answer["usage"]["cache_read_input_tokens"] == 2
    assert answer["usage"]["input_tokens"] == len("<user>hi<assistant>") - 2


async def test_events_come_in_the_order_clients_expect_and_make_the_same_message(client):
    events = await stream(client, max_tokens=3)
    kinds = [event["type"] for event in events]
    assert kinds[:3] == ["message_start", "ping", "content_block_start"]
    assert kinds[3:6] == ["content_block_delta"] * 3
    assert kinds[6:] == ["content_block_stop", "message_delta", "message_stop"]
    assert "".join(event["delta"]["text"] for event in events[3:6]) == "and"
    assert events[0]["message"]["content"] == []
    assert events[-2]["delta"]["stop_reason"] == "max_tokens"
    assert events[-2]["usage"]["output_tokens"] == 3


async def test_system_blocks_results_and_calls_reach_the_template(client, engine):
    text = await prompt(
        client,
        engine,
        system=[{"type": "text", "text": "Be kind.", "cache_control": {"type": "ephemeral"}}],
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "weather?"}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": ""},
                    {"type": "text", "text": "Let me see."},
                    {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Ulm"}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "t1", "content": "no", "is_error": True},
                    {"type": "text", "text": "Well?"},
                ],
            },
        ],
    )
    assert text == (
        "<system>Be kind.<user>weather?<assistant>Let me see.<tool>Error: no<user>Well?<assistant>"
    )


async def test_blocks_that_are_text_reach_the_template_as_text(client, engine):
    result = [
        {"type": "text", "text": "found: "},
        {"type": "tool_reference", "tool_name": "weather"},
        {"type": "search_result", "title": "T", "source": "s", "content": []},
    ]
    source = {"type": "text", "media_type": "text/plain", "data": "once"}
    text = await prompt(
        client,
        engine,
        messages=[
            {"role": "user", "content": [{"type": "document", "source": source, "title": "D"}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "redacted_thinking", "data": "xyz"},
                    {"type": "tool_use", "id": "t1", "name": "find", "input": {}},
                ],
            },
            {
                "role": "user",
                "content": [{"type": "tool_result", "tool_use_id": "t1", "content": result[1:2]}],
            },
            {
                "role": "user",
                "content": [
                    {
                        "type": "search_result",
                        "title": "T",
                        "source": "s",
                        "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
                    }
                ],
            },
        ],
    )
    assert text == "<user>D\nonce<assistant><tool>weather<user>T\ns\na\nb<assistant>"
    several = chat_messages(
        CountTokensRequest(
            messages=[
                {
                    "role": "user",
                    "content": [{"type": "tool_result", "tool_use_id": "t", "content": result}],
                }
            ]
        )
    )
    assert [part["text"] for part in several[0]["content"]] == ["found: ", "weather", "T\ns"]


def thoughts(**management):
    """What is left of the thinking of three turns."""
    messages = []
    for i in range(3):
        block = {"type": "thinking", "thinking": f"t{i}", "signature": ""}
        messages += [
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": [block, {"type": "text", "text": "yes"}]},
        ]
    request = CountTokensRequest(
        messages=[*messages, {"role": "user", "content": "bye"}], context_management=management
    )
    return [m["reasoning_content"] for m in chat_messages(request) if "reasoning_content" in m]


CLEAR = {"type": "clear_thinking_20251015"}


@pytest.mark.parametrize(
    ("edits", "left"),
    [
        ([], ["t0", "t1", "t2"]),
        ([{**CLEAR, "keep": "all"}], ["t0", "t1", "t2"]),
        ([{**CLEAR, "keep": {"type": "all"}}], ["t0", "t1", "t2"]),
        ([{**CLEAR, "keep": {"type": "thinking_turns", "value": 2}}], ["t1", "t2"]),
        ([{**CLEAR, "keep": {"type": "thinking_turns", "value": 9}}], ["t0", "t1", "t2"]),
        ([CLEAR], ["t2"]),
    ],
)
def test_thinking_is_kept_as_context_management_says(edits, left):
    assert thoughts(edits=edits) == left
    assert thoughts() == ["t0", "t1", "t2"]


@pytest.mark.parametrize(
    "edit",
    [
        {"type": "clear_tool_uses_20250919"},
        {"type": "compact_20260112"},
        {**CLEAR, "keep": {"type": "thinking_turns", "value": 0}},
        {**CLEAR, "keep": "some"},
        "all",
    ],
)
async def test_what_would_take_anything_else_away_is_refused(client, edit):
    reply = await client.post(
        "/v1/messages", json={**HELLO, "context_management": {"edits": [edit]}}
    )
    assert reply.status_code == 400, reply.text
    assert "context_management.edits[0]" in reply.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
@pytest.mark.parametrize("before", [[], [{"type": "text", "text": "Let me see."}]])
async def test_a_last_call_without_its_result_is_refused(client, path, before):
    call = {"type": "tool_use", "id": "t1", "name": "weather", "input": {}}
    messages = [*HELLO["messages"], {"role": "assistant", "content": [*before, call]}]
    reply = await client.post(path, json={**HELLO, "messages": messages})
    assert reply.status_code == 400, reply.text
    assert "'t1'" in reply.json()["error"]["message"]
    assert "tool_result" in reply.json()["error"]["message"]


async def test_a_system_message_of_one_turn_is_gone_in_the_next(client, engine):
    once = {"role": "system", "content": "Be brief.", "clear_at": "next_user_message"}
    turn = [*HELLO["messages"], once]
    assert await prompt(client, engine, messages=turn) == "<user>hi<system>Be brief.<assistant>"
    turns = [*turn, {"role": "assistant", "content": "ho"}, *HELLO["messages"]]
    assert (
        await prompt(client, engine, messages=turns) == "<user>hi<assistant>ho<user>hi<assistant>"
    )


async def test_a_last_message_of_the_assistants_is_continued(client, engine):
    messages = [*HELLO["messages"], {"role": "assistant", "content": "Well, I"}]
    assert await prompt(client, engine, messages=messages) == "<user>hi<assistant>Well, I"


@pytest.mark.parametrize("streamed", [False, True])
async def test_thinking_text_and_calls_are_blocks_of_their_own(clever, engine, streamed):
    engine.text = f"<think>hm, hm</think>So:{CALL}{CALL.replace('Ulm', 'Bonn')}"
    asked = {"tools": [TOOL], "max_tokens": 1000, "thinking": {"type": "enabled"}}
    if not streamed:
        answer = await post(clever, **asked)
        blocks, reason = answer["content"], answer["stop_reason"]
    else:
        events = await stream(clever, **asked)
        blocks, reason = rebuilt(events), events[-2]["delta"]["stop_reason"]
    assert [block["type"] for block in blocks] == ["thinking", "text", "tool_use", "tool_use"]
    assert blocks[0]["thinking"] == "hm, hm"
    assert blocks[1]["text"] == "So:"
    assert [block["input"] for block in blocks[2:]] == [{"city": "Ulm"}, {"city": "Bonn"}]
    assert blocks[2]["id"] != blocks[3]["id"]
    assert reason == "tool_use"


def rebuilt(events):
    """The blocks as a client makes them; each must be stopped before the next starts."""
    blocks, is_open = [], False
    for event in events:
        if event["type"] == "content_block_start":
            assert not is_open
            is_open = True
            blocks.append(event["content_block"] | {"input": ""})
        elif event["type"] == "content_block_stop":
            is_open = False
        elif event["type"] == "content_block_delta":
            assert is_open and event["index"] == len(blocks) - 1
            for name, text in event["delta"].items():
                if name != "type":
                    field = {"partial_json": "input"}.get(name, name)
                    blocks[-1][field] += text
    assert not is_open
    for block in blocks:
        block["input"] = json.loads(block["input"] or "null")
    return blocks


@pytest.mark.parametrize(
    "choice, sent",
    [({"type": "any"}, "required"), ({"type": "tool", "name": "weather"}, "weather")],
)
async def test_a_forced_choice_becomes_a_grammar(client, engine, choice, sent):
    await client.post("/v1/messages", json={**HELLO, "tools": [TOOL], "tool_choice": choice})
    assert engine.seen[-1][1].structured_outputs.json is not None


async def test_tokens_are_counted_without_generating(client, engine):
    body = {"messages": HELLO["messages"], "system": "Be kind."}
    counted = await post(client, "/v1/messages/count_tokens", **body)
    assert counted == {"input_tokens": len("<system>Be kind.<user>hi<assistant>")}
    assert not engine.seen


@pytest.mark.parametrize(
    "change, named",
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens must be at least 1"),
        ({"messages": []}, "messages is empty"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
            "messages[0].content[0] has type 'image'",
        ),
        ({"stop_sequences": "x"}, "stop_sequences"),
        ({"temperature": -1}, "temperature"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0] has type"),
        ({"tools": [TOOL], "tool_choice": {"type": "some"}}, "tool_choice.type"),
        ({"tools": [TOOL]}, "--enable-auto-tool-choice"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "--reasoning-parser"),
        ({"mcp_servers": [{"url": "x"}]}, "mcp_servers"),
        ({"output_config": {"format": {"type": "xml"}}}, "output_config.format"),
    ],
)
async def test_what_is_wrong_is_named_in_the_shape_of_this_route(client, change, named):
    response = await client.post("/v1/messages", json={**HELLO, **change})
    assert response.status_code == 400, response.text
    body = response.json()
    assert (body["type"], body["error"]["type"]) == ("error", "invalid_request_error")
    assert named in body["error"]["message"]


async def test_other_errors_keep_their_status_and_have_a_type(client, engine):
    unknown = await client.post("/v1/messages", json={**HELLO, "model": "other"})
    assert (unknown.status_code, unknown.json()["error"]["type"]) == (404, "not_found_error")
    broken = await client.post(
        "/v1/messages", content=b'{"a": \xff', headers={"content-type": "application/json"}
    )
    assert (broken.status_code, broken.json()["error"]["type"]) == (400, "invalid_request_error")
    engine.raises = EngineDeadError("gone")
    dead = await client.post("/v1/messages", json=HELLO)
    assert (dead.status_code, dead.json()["error"]["type"]) == (503, "overloaded_error")
    engine.raises = RuntimeError("secret")
    failed = await client.post("/v1/messages", json=HELLO)
    assert (failed.status_code, failed.json()["error"]["type"]) == (500, "api_error")
    assert "secret" not in failed.text


async def test_a_failure_in_a_stream_is_its_last_event(client, engine):
    engine.dies_after = 2
    events = await stream(client)
    assert events[0]["type"] == "message_start"
    assert events[-1]["type"] == "error"
    assert events[-1]["error"]["type"] == "overloaded_error"


async def test_a_key_may_come_as_anthropics_clients_send_it(make_app):
    transport = httpx.ASGITransport(app=make_app(api_key=("one",)))
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
        for headers, status in [
            ({}, 401),
            ({"x-api-key": "two"}, 401),
            ({"x-api-key": "one"}, 200),
        ]:
            response = await client.post("/v1/messages", json=HELLO, headers=headers)
            assert response.status_code == status
