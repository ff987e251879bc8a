"""The `anthropic` package on /v1/messages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from anthropic import Anthropic

from tests.clients.shapes import HELLO, SUM, SUM_ANSWER, WEATHER
from tests.entrypoints.openai.real_server import NAME, RealServer

pytestmark = pytest.mark.engine
GREEDY = {"temperature": 0}  # the package has no argument for it any more
FUNCTION = WEATHER["function"]
TOOL: Any = {
    "name": FUNCTION["name"],
    "description": FUNCTION["description"],
    "input_schema": FUNCTION["parameters"],
}


@pytest.fixture(scope="module")
def client(server: RealServer) -> Iterator[Anthropic]:
    with Anthropic(base_url=server.url, api_key="none", max_retries=0, timeout=600) as client:
        yield client


def test_a_message_is_answered(client: Anthropic) -> None:
    answer = client.messages.create(
        model=NAME, messages=SUM, max_tokens=32, system="Be brief.", extra_body=GREEDY
    )
    assert answer.role == "assistant"
    assert answer.content[0].type == "text"
    assert answer.stop_reason == "end_turn"
    assert answer.usage.output_tokens > 0


def test_a_cut_answer_says_so(client: Anthropic) -> None:
    answer = client.messages.create(model=NAME, messages=HELLO, max_tokens=4)
    assert answer.stop_reason == "max_tokens"
    assert answer.usage.output_tokens == 4


def test_a_streamed_message_is_the_whole_one(client: Anthropic) -> None:
    with client.messages.stream(
        model=NAME, messages=SUM, max_tokens=32, extra_body=GREEDY
    ) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == SUM_ANSWER
    assert final.stop_reason == "end_turn"


def test_a_tool_that_is_asked_for_is_used(client: Anthropic) -> None:
    answer = client.messages.create(
        model=NAME,
        messages=HELLO,
        max_tokens=100,
        tools=[TOOL],
        tool_choice={"type": "tool", "name": "get_weather"},
    )
    assert answer.stop_reason == "tool_use"
    use = answer.content[-1]
    assert use.type == "tool_use"
    assert use.name == "get_weather"
    assert use.input["city"] in ("Oslo", "Rome")
    turns: list[Any] = [
        *HELLO,
        {"role": "assistant", "content": answer.content},
        {
            "role": "user",
            "content": [{"type": "tool_result", "tool_use_id": use.id, "content": "Sunny."}],
        },
    ]
    assert client.messages.create(model=NAME, messages=turns, max_tokens=8, tools=[TOOL]).content


def test_a_streamed_tool_use_is_whole(client: Anthropic) -> None:
    with client.messages.stream(
        model=NAME, messages=HELLO, max_tokens=100, tools=[TOOL], tool_choice={"type": "any"}
    ) as stream:
        final = stream.get_final_message()
    use = final.content[-1]
    assert use.type == "tool_use"
    assert 1 <= use.input["days"] <= 9


def test_tokens_are_counted_without_an_answer(client: Anthropic) -> None:
    counted = client.messages.count_tokens(model=NAME, messages=HELLO)
    answer = client.messages.create(model=NAME, messages=HELLO, max_tokens=1)
    assert counted.input_tokens == answer.usage.input_tokens


def test_errors_are_of_the_class_that_programs_catch(client: Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(model="none such", messages=HELLO, max_tokens=1)
    with pytest.raises(anthropic.BadRequestError) as caught:
        client.messages.create(model=NAME, messages=[], max_tokens=1)
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["type"] == "error"
