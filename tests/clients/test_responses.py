"""The `openai` package on /v1/responses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import OpenAI

from tests.clients.shapes import SUM_ANSWER, WEATHER, Clock
from tests.entrypoints.openai.real_server import NAME

pytestmark = pytest.mark.engine
SUM = "What is 12 + 7?"
TOOL: Any = {"type": "function", "strict": True, **WEATHER["function"]}


@pytest.fixture(scope="module")
def client(base_url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=base_url, api_key="none", max_retries=0, timeout=600) as client:
        yield client


def test_a_response_is_created_and_retrieved(client: OpenAI) -> None:
    made = client.responses.create(model=NAME, input=SUM, temperature=0)
    assert made.output_text == SUM_ANSWER
    assert made.status == "completed"
    assert client.responses.retrieve(made.id).output_text == made.output_text


def test_a_response_follows_another(client: OpenAI) -> None:
    first = client.responses.create(model=NAME, input=SUM, temperature=0)
    second = client.responses.create(
        model=NAME, input="And 3 + 4?", previous_response_id=first.id, max_output_tokens=16
    )
    assert first.usage is not None
    assert second.usage is not None
    assert second.usage.input_tokens > first.usage.input_tokens + 5


def test_a_streamed_response_is_the_whole_one(client: OpenAI) -> None:
    with client.responses.stream(model=NAME, input=SUM, temperature=0) as stream:
        events = list(stream)
        final = stream.get_final_response()
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == final.output_text == SUM_ANSWER
    assert events[0].type == "response.created"
    assert [event.sequence_number for event in events] == list(range(len(events)))


def test_a_response_is_parsed_into_a_model(client: OpenAI) -> None:
    answer = client.responses.parse(
        model=NAME, input="A clock.", text_format=Clock, max_output_tokens=200
    )
    assert isinstance(answer.output_parsed, Clock)


def test_a_function_that_is_asked_for_is_called(client: OpenAI) -> None:
    choice: Any = {"type": "function", "name": "get_weather"}
    answer = client.responses.create(
        model=NAME, input="Weather?", tools=[TOOL], tool_choice=choice, max_output_tokens=100
    )
    call = answer.output[-1]
    assert call.type == "function_call"
    assert json.loads(call.arguments)["city"] in ("Oslo", "Rome")
    turns: list[Any] = [
        {"role": "user", "content": "Weather?"},
        call,
        {"type": "function_call_output", "call_id": call.call_id, "output": "Sunny."},
    ]
    assert client.responses.create(model=NAME, input=turns, max_output_tokens=16).output_text


def test_a_response_in_the_background_is_cancelled(client: OpenAI) -> None:
    made = client.responses.create(
        model=NAME,
        input="Tell me a story.",
        background=True,
        max_output_tokens=900,
        extra_body={"ignore_eos": True},
    )
    assert made.status in ("queued", "in_progress")
    assert client.responses.cancel(made.id).status == "cancelled"


def test_errors_are_of_the_class_that_programs_catch(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve("resp_none")
    with pytest.raises(openai.BadRequestError):
        client.responses.create(model=NAME, input="a", temperature=-1)
