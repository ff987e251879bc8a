"""Many requests at once, with and without a form, streamed and not, some given up half-way."""

from __future__ import annotations

import asyncio
import json
import random
import re
from typing import Any

import httpx
import jsonschema
import pytest

from tests.entrypoints.openai.real_server import RealServer
from tests.limits import HANG_S

pytestmark = pytest.mark.engine

SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "c": {"enum": ["x", "y"]}},
    "required": ["a", "c"],
    "additionalProperties": False,
}
TOOLS = [{"type": "function", "function": {"name": name, "parameters": SCHEMA}} for name in "fg"]
PATTERN = "[a-f]{3,9}-[0-9]{2}"
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "json": {"structured_outputs": {"json": SCHEMA, "disable_any_whitespace": True}},
    "regex": {"structured_outputs": {"regex": PATTERN}},
    "named": {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "f"}}},
    "required": {"tools": TOOLS, "tool_choice": "required"},
    "wrong": {"structured_outputs": {"regex": "("}},
}


class Choice:
    """One answer, put together from the chunks of a stream."""

    def __init__(self) -> None:
        self.text = ""
        self.arguments: list[str] = []
        self.finish_reason = ""

    def add(self, message: dict[str, Any], finish_reason: str | None) -> None:
        self.text += message.get("content") or ""
        for call in message.get("tool_calls") or ():
            if call["function"].get("name"):
                self.arguments.append("")
            self.arguments[-1] += call["function"]["arguments"]
        self.finish_reason = finish_reason or self.finish_reason


def check(kind: str, choice: Choice) -> None:
    if choice.finish_reason == "length":
        return
    if kind == "json":
        jsonschema.validate(json.loads(choice.text), SCHEMA)
    elif kind == "regex":
        assert re.fullmatch(PATTERN, choice.text)
    elif kind in ("named", "required"):
        assert choice.finish_reason == "tool_calls" and choice.arguments and not choice.text
        for arguments in choice.arguments:
            jsonschema.validate(json.loads(arguments), SCHEMA)


async def whole(client: httpx.AsyncClient, body: dict[str, Any]) -> dict[int, Choice] | int:
    response = await client.post("/v1/chat/completions", json=body)
    if response.status_code != 200:
        return response.status_code
    choices: dict[int, Choice] = {}
    for item in response.json()["choices"]:
        choices.setdefault(item["index"], Choice()).add(item["message"], item["finish_reason"])
    return choices


async def streamed(
    client: httpx.AsyncClient, body: dict[str, Any], most_events: int
) -> dict[int, Choice]:
    choices: dict[int, Choice] = {}
    num_events = 0
    body = {**body, "stream": True}
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        assert response.status_code == 200
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            for item in json.loads(line[6:])["choices"]:
                choices.setdefault(item["index"], Choice()).add(
                    item["delta"], item["finish_reason"]
                )
            num_events += 1
            if num_events == most_events:
                return {}  # the client goes away
    return choices


async def one(client: httpx.AsyncClient, seed: int) -> str:
    rng = random.Random(seed)
    kind = rng.choice(list(KINDS))
    body = {
        "messages": [{"role": "user", "content": rng.choice(["hi", "Tell me a story."])}],
        "max_tokens": rng.choice([15, 120]),
        "temperature": rng.choice([0.5, 1.5]),
        "n": rng.choice([1, 2]),
        **KINDS[kind],
    }
    if kind != "wrong" and rng.random() < 0.5:
        choices: dict[int, Choice] | int = await streamed(client, body, rng.choice([5, 10_000]))
    else:
        choices = await whole(client, body)
    if isinstance(choices, int):
        assert (kind, choices) == ("wrong", 400)
        return kind
    assert kind != "wrong" and (not choices or len(choices) == body["n"])
    for choice in choices.values():
        check(kind, choice)
    return kind


async def test_every_answer_has_its_form_and_nothing_is_left_behind(server: RealServer) -> None:
    async with httpx.AsyncClient(base_url=server.url, timeout=HANG_S) as client:
        kinds = await asyncio.gather(*(one(client, seed) for seed in range(150)))
        assert set(kinds) == set(KINDS)
    for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"):
        server.wait_for_metric(f"vllm:{name}", 0.0)


# A pattern that nothing enforces.
UNHELD = {"type": "object", "properties": {"a": {"type": "string", "pattern": "a$b"}}}
FUNCTION = {"name": "f", "parameters": UNHELD}
SCHEMA_FORMAT = {"type": "json_schema", "json_schema": {"name": "s", "schema": UNHELD}}
HELLO = [{"role": "user", "content": "hi"}]
CHAT_TOOLS = {"messages": HELLO, "tools": [{"type": "function", "function": FUNCTION}]}
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("chat/completions", {**CHAT_TOOLS, "tool_choice": "required"}, "tools"),
    (
        "chat/completions",
        {**CHAT_TOOLS, "tool_choice": {"type": "function", "function": {"name": "f"}}},
        "tools",
    ),
    ("chat/completions", {"messages": HELLO, "response_format": SCHEMA_FORMAT}, "response_format"),
    ("completions", {"prompt": "a", "guided_regex": "a$b"}, "guided_regex"),
    ("completions", {"prompt": "a", "structured_outputs": {"regex": "a$b"}}, "structured_outputs"),
    ("completions", {"prompt": "a", "guided_json": "{" * 5}, "guided_json"),
    (
        "responses",
        {
            "input": "hi",
            "text": {"format": {"type": "json_schema", "name": "s", "schema": UNHELD}},
        },
        "text.format",
    ),
    (
        "responses",
        {"input": "hi", "tools": [{"type": "function", **FUNCTION}], "tool_choice": "required"},
        "tools",
    ),
    (
        "messages",
        {
            "messages": HELLO,
            "max_tokens": 5,
            "tools": [{"name": "f", "input_schema": UNHELD}],
            "tool_choice": {"type": "any"},
        },
        "tools",
    ),
]


@pytest.mark.parametrize(("path", "body", "name"), REFUSED, ids=str)
async def test_a_form_that_is_refused_is_named_as_it_was_sent(
    path: str, body: dict[str, Any], name: str, server: RealServer
) -> None:
    async with httpx.AsyncClient(base_url=server.url, timeout=HANG_S) as client:
        response = await client.post(f"/v1/{path}", json=body)
    error = response.json()["error"]
    assert response.status_code == 400
    assert error["message"].startswith(f"{name}: "), error
    assert error.get("param", name) == name
