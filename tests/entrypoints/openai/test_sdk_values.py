"""Every value that the OpenAI and Anthropic SDKs enumerate in what they can send: accepted, or told
here to be refused. A new release of an SDK shows here what it has new."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import pytest_asyncio
from anthropic.types import message_create_params
from anthropic.types.beta import message_create_params as beta_message_create_params
from openai.types import completion_create_params
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.responses import response_create_params

from tests.entrypoints.openai.sdk_types import Walker

USER = {"role": "user", "content": "hi"}
FUNCTION = {"name": "weather", "parameters": {"type": "object"}}
CHAT_TOOL = {"type": "function", "function": FUNCTION}
CHAT_CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
CALL_ITEM = {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}"}
RESULT = {"type": "tool_result", "tool_use_id": "c1"}
TEXTS = {
    "call_id": "c1",
    "tool_call_id": "c1",
    "tool_use_id": "c1",
    "name": "weather",
    "arguments": "{}",
    "id": "resp_x",
    "input_schema": {"type": "object"},
    "parameters": {"type": "object"},
    "schema": {"type": "object"},
    "tools": [{"type": "function", "name": "weather", "function": FUNCTION}],
    "budget_tokens": 1024,
}

# Of fields that say what kind of object one is: the kinds that are taken. Others are a 400.
TAKEN = {
    "chat": {
        "messages[].content[].type": {"text", "refusal"},
        "messages[].tool_calls[].type": {"function"},
        "tools[].type": {"function"},
        "tool_choice.type": {"function", "allowed_tools"},
    },
    "completions": {},
    "responses": {
        "input[].type": {
            *("message", "function_call", "function_call_output", "reasoning", "item_reference"),
        },
        "input[].content[].type": {"input_text", "output_text", "refusal", "reasoning_text"},
        "input[].output[].type": {"input_text"},
        "tools[].type": {"function"},
        "tool_choice.type": {"function", "allowed_tools"},
    },
    "messages": {
        "messages[].content[].type": {
            *("text", "thinking", "redacted_thinking", "tool_use", "tool_result"),
            *("search_result", "document"),
        },
        "messages[].content[].content[].type": {
            *("text", "tool_reference", "search_result", "document"),
        },
        "messages[].content[].source.type": {"text", "content"},
        "messages[].content[].content[].source.type": {"text", "content"},
        "messages[].content[].source.content[].type": {"text"},
        "messages[].content[].content[].source.content[].type": {"text"},
        "tools[].type": {"custom"},
        "context_management.edits[].type": {"clear_thinking_20251015"},
    },
}
# Other values that are a 400, and whole fields.
REFUSED: dict[str, set[tuple[str, Any]]] = {
    "chat": {("modalities[]", "audio")},
    "completions": set(),
    # Only code that a server runs might call a tool without "direct".
    "responses": {("reasoning.mode", "pro"), ("tools[].allowed_callers[]", "programmatic")},
    "messages": {
        ("tools[].allowed_callers[]", f"code_execution_{day}")
        for day in ("20250825", "20260120", "20260521")
    },
}
REFUSED_FIELDS = {
    "chat": {"audio", "moderation"},
    "completions": {"suffix"},
    "responses": {"moderation", "prompt", "conversation"},
    "messages": {"container", "mcp_servers", "thread", "compaction"},
}
SENT = {
    "chat": chat_create_params.CompletionCreateParamsNonStreaming,
    "completions": completion_create_params.CompletionCreateParamsNonStreaming,
    "responses": response_create_params.ResponseCreateParamsNonStreaming,
    "messages": message_create_params.MessageCreateParamsNonStreaming,
    "messages (beta)": beta_message_create_params.MessageCreateParamsNonStreaming,
}
PATHS = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "responses": "/v1/responses",
    "messages": "/v1/messages",
}
LEAST: dict[str, dict[str, Any]] = {
    "chat": {"messages": [USER], "tools": [CHAT_TOOL], "max_tokens": 2},
    "completions": {"prompt": "hi", "max_tokens": 2},
    "responses": {"input": "hi", "tools": [{"type": "function", **FUNCTION}]},
    "messages": {
        "messages": [USER],
        "max_tokens": 2,
        "tools": [{"name": "weather", "input_schema": {"type": "object"}}],
    },
}


@pytest_asyncio.fixture
async def client(make_app):
    """Of a server whose model reasons and calls functions, with a response that is kept."""
    app = make_app(
        enable_auto_tool_choice=True, tool_call_parser="hermes", reasoning_parser="qwen3"
    )
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
        item = {**USER, "id": "resp_x"}
        kept = await client.post("/v1/responses", json={"input": [item]})
        assert kept.status_code == 200, kept.text
        yield client


def body_of(endpoint: str, part: dict[str, Any]) -> dict[str, Any]:
    """A whole request: `part` has what its types require, and this what they cannot say."""
    body = {**LEAST[endpoint], **part}
    body.pop("model", None)
    if endpoint == "messages" and part["messages"] != "x":
        body["messages"] = whole_messages(part["messages"])
    if endpoint == "responses" and isinstance(body["input"], list):
        body["input"] = [CALL_ITEM, *body["input"]]
    return body


def whole_messages(messages: list[Any]) -> list[Any]:
    """Blocks of an assistant are in a message of its own, and its calls have a result."""
    for message in messages:
        content = message.setdefault("content", "hi")
        for block in content if isinstance(content, list) else ():
            if block["type"] in ("thinking", "redacted_thinking", "tool_use"):
                message["role"] = "assistant"
    return [*messages, {"role": "user", "content": [RESULT]}]


def is_refused(endpoint: str, path: str, value: Any) -> bool:
    taken = TAKEN[endpoint].get(path)
    return (
        path.partition(".")[0].rstrip("[]") in REFUSED_FIELDS[endpoint]
        or (path, value) in REFUSED[endpoint]
        or (taken is not None and value not in taken)
    )


@pytest.mark.parametrize("sdk", SENT)
async def test_every_value_of_the_sdk_is_taken_or_known_to_be_refused(client, sdk):
    endpoint = sdk.partition(" ")[0]
    tried: set[tuple[str, str, Any]] = set()
    wrong = []
    for case in Walker(TAKEN[endpoint], TEXTS).cases(SENT[sdk]):
        key = (case.path, case.owner, case.value)
        if key in tried or case.path == "model":
            continue
        tried.add(key)
        reply = await client.post(PATHS[endpoint], json=body_of(endpoint, case.part))
        expected = 400 if is_refused(endpoint, case.path, case.value) else 200
        if reply.status_code != expected:
            wrong.append((*key, reply.status_code, reply.text[:200]))
    assert tried
    assert not wrong, f"{len(wrong)} of {len(tried)}: " + "\n".join(map(str, wrong[:40]))


async def test_allowed_tools_are_those_that_a_chat_may_call(client, engine):
    time = {"type": "function", "function": {"name": "time"}}
    body = {"messages": [USER], "tools": [CHAT_TOOL, time], "max_tokens": 2}

    async def ask(*names: str, mode: str = "required") -> httpx.Response:
        tools = [{"type": "function", "function": {"name": name}} for name in names]
        choice = {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}
        return await client.post(PATHS["chat"], json={**body, "tool_choice": choice})

    assert (await ask("time")).status_code == 200
    form = engine.seen[-1][1].structured_outputs.json
    assert '"time"' in form and '"weather"' not in form
    assert (await ask("time", mode="auto")).status_code == 200
    assert engine.seen[-1][1].structured_outputs is None
    for names, mode, said in ((("rain",), "auto", "rain"), (("time",), "some", "mode")):
        reply = await ask(*names, mode=mode)
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, "tool_choice")
        assert said in reply.json()["error"]["message"]
