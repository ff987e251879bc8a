"""Batches through the real application and a fake engine."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.entrypoints.openai.fakes import FakeEngine
from vllm.entrypoints.openai.batch.runner import BatchRunner


def line(custom_id: str, url: str = "/v1/completions", **body: Any) -> str:
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": url, "body": body})


async def answers(app: Any, lines: list[str], limit: int = 4, first: int = 0) -> list[Any]:
    runner = BatchRunner(app, limit)
    data = [text.encode() for text in lines]
    return [json.loads(text.encode()) async for text in runner.answers(data, first)]


async def test_every_line_is_answered_in_its_place(make_app: Callable[..., Any]) -> None:
    chat = [{"role": "user", "content": "hi"}]
    found = await answers(
        make_app(),
        [
            line("long", prompt="x", max_tokens=20),
            line("chat", "/v1/chat/completions", messages=chat, max_tokens=3),
            "no json",
            line("field", prompt="x", temperature=-1),
            line("model", prompt="x", model="other"),
            line("short", prompt="x", max_tokens=1),
        ],
    )
    assert [item["custom_id"] for item in found] == [
        "long",
        "chat",
        None,
        "field",
        "model",
        "short",
    ]
    statuses = [item["response"] and item["response"]["status_code"] for item in found]
    assert statuses == [200, 200, None, 400, 404, 200]
    assert found[1]["response"]["body"]["choices"][0]["message"]["content"] == "and"
    assert found[3]["response"]["body"]["error"]["param"] == "temperature"
    assert [item["error"] is None for item in found] == [True, True, False, False, False, True]
    assert len({item["id"] for item in found}) == 6


async def test_responses_can_be_asked_for(make_app: Callable[..., Any]) -> None:
    (found,) = await answers(
        make_app(), [line("a", "/v1/responses", input="hi", max_output_tokens=3)]
    )
    output = found["response"]["body"]["output"]
    assert output[0]["content"][0]["text"] == "and" and found["error"] is None


async def test_a_repeated_custom_id_is_an_error_of_the_later_line(
    make_app: Callable[..., Any], engine: FakeEngine
) -> None:
    found = await answers(make_app(), [line("a", prompt="x"), line("a", prompt="y")])
    assert found[0]["error"] is None and found[1]["error"]["code"] == "duplicate_custom_id"
    assert len(engine.seen) == 1


async def test_what_json_cannot_hold_is_an_error_of_its_line_alone(
    make_app: Callable[..., Any],
) -> None:
    found = await answers(
        make_app(),
        [
            line("surrogate", prompt="a\ud83d"),
            line("nan", prompt="x", temperature=float("nan")),
            line("inf", prompt="x").replace('"prompt"', '"y": 1e999, "prompt"'),
            line("id\ud83d", prompt="x"),
            line("deep").replace("{}", '{"a":' * 900 + "1" + "}" * 900),
            line("good", prompt="x"),
        ],
    )
    told = [(item["custom_id"], item["error"] and item["error"]["code"]) for item in found]
    assert told == [
        ("surrogate", "BadRequestError"),
        ("nan", "BadRequestError"),
        ("inf", "BadRequestError"),
        (None, "invalid_custom_id"),
        ("deep", "BadRequestError"),
        ("good", None),
    ]


async def test_lines_that_were_answered_earlier_are_not_asked_again(
    make_app: Callable[..., Any], engine: FakeEngine
) -> None:
    lines = [line(name, prompt="x") for name in ("a", "b", "b")]
    found = await answers(make_app(), lines, first=1)
    assert [item["custom_id"] for item in found] == ["b", "b"]
    assert found[1]["error"]["code"] == "duplicate_custom_id"
    assert len(engine.seen) == 1


@pytest.mark.parametrize("limit", [1, 3])
async def test_no_more_lines_run_at_a_time_than_allowed(
    make_app: Callable[..., Any], engine: FakeEngine, limit: int
) -> None:
    most = 0
    running = engine.running

    class Watched(set[str]):
        def add(self, item: str) -> None:
            nonlocal most
            running.add(item)
            super().add(item)
            most = max(most, len(self))

    engine.running = Watched()
    lines = [line(str(i), prompt="x", max_tokens=4) for i in range(9)]
    assert len(await answers(make_app(), lines, limit)) == 9
    assert most == limit


async def test_answers_that_nobody_waits_for_are_stopped(
    make_app: Callable[..., Any], engine: FakeEngine
) -> None:
    engine.gap_s = 0.05
    runner = BatchRunner(make_app(), 4)
    lines = [line("first", prompt="x", max_tokens=1)]
    lines += [line(str(i), prompt="x", max_tokens=20) for i in range(6)]
    stream = runner.answers([text.encode() for text in lines])
    assert json.loads(await anext(stream))["custom_id"] == "first"
    await stream.aclose()
    assert not engine.running
