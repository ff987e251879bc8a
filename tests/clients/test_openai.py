"""The `openai` package: every way in which it is used to call such a server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from tests.clients.shapes import HELLO, SUM, SUM_ANSWER, WEATHER, Clock
from tests.entrypoints.openai.conftest import make_context
from tests.entrypoints.openai.fakes import FakeEngine, byte_tokenizer
from tests.entrypoints.openai.real_server import NAME
from tests.limits import HANG_S
from vllm.entrypoints.openai.api_server import build_app
from vllm.metrics.logging import LoggingStats
from vllm.metrics.prometheus import PrometheusStats

pytestmark = pytest.mark.engine
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 16}
PATIENCE_S = 0.05  # of a client that gives up
CALL = {"type": "function", "function": {"name": "get_weather"}}


@pytest.fixture(scope="module")
def client(base_url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=base_url, api_key="none", max_retries=0, timeout=HANG_S) as client:
        yield client


def test_models_are_listed_and_found(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [NAME, "alias"]
    assert client.models.retrieve("alias").id == "alias"


def test_a_completion_has_text_usage_and_logprobs(client: OpenAI) -> None:
    answer = client.completions.create(
        model=NAME, prompt=["Once upon a time", "One day"], logprobs=2, echo=True, **GREEDY
    )
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.choices[0].text.startswith("Once upon a time")
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert logprobs.token_logprobs is not None
    assert "".join(logprobs.tokens).endswith(answer.choices[0].text[-5:])
    assert logprobs.token_logprobs[0] is None
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 32


def test_a_streamed_completion_is_the_whole_one(client: OpenAI) -> None:
    whole = client.completions.create(model=NAME, prompt="Once upon a time", **GREEDY)
    chunks = list(
        client.completions.create(
            model=NAME,
            prompt="Once upon a time",
            stream=True,
            stream_options={"include_usage": True},
            **GREEDY,
        )
    )
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == whole.choices[0].text
    assert chunks[-1].usage == whole.usage


def test_a_chat_has_a_message_and_logprobs(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model=NAME, messages=HELLO, logprobs=True, top_logprobs=3, n=2, seed=5, max_tokens=8
    )
    assert [choice.message.role for choice in answer.choices] == ["assistant"] * 2
    logprobs = answer.choices[1].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert [len(token.top_logprobs) for token in logprobs.content] == [3] * len(logprobs.content)


def test_extra_fields_reach_the_engine(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model=NAME,
        messages=HELLO,
        temperature=2,
        max_tokens=8,
        extra_body={"top_k": 1, "structured_outputs": {"choice": ["yes", "no"]}},
    )
    assert answer.choices[0].message.content in ("yes", "no")


def test_a_streamed_chat_is_the_whole_one(client: OpenAI) -> None:
    whole = client.chat.completions.create(model=NAME, messages=SUM, temperature=0)
    with client.chat.completions.stream(model=NAME, messages=SUM, temperature=0) as stream:
        events = list(stream)
        final = stream.get_final_completion()
    assert final.choices[0].message.content == whole.choices[0].message.content == SUM_ANSWER
    assert final.choices[0].finish_reason == "stop"
    assert {"chunk", "content.delta", "content.done"} <= {event.type for event in events}


async def test_the_asynchronous_client_streams_several_at_once(base_url: str) -> None:
    async with AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0) as client:

        async def text(prompt: str) -> str:
            stream = await client.completions.create(
                model=NAME, prompt=prompt, stream=True, **GREEDY
            )
            return "".join([chunk.choices[0].text async for chunk in stream])

        together = await asyncio.gather(*map(text, ("One day", "Once", "One day")))
        assert together[0] == together[2] == await text("One day")


def test_raw_and_streaming_responses_show_the_headers(client: OpenAI) -> None:
    raw = client.completions.with_raw_response.create(model=NAME, prompt="Once", **GREEDY)
    assert raw.headers["content-type"] == "application/json"
    assert raw.parse().choices[0].text
    with client.chat.completions.with_streaming_response.create(
        model=NAME, messages=HELLO, stream=True, **GREEDY
    ) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"


@pytest.mark.parametrize("is_beta", [False, True])
def test_an_answer_is_parsed_into_a_model(client: OpenAI, is_beta: bool) -> None:
    completions = client.beta.chat.completions if is_beta else client.chat.completions
    answer = completions.parse(
        model=NAME, messages=HELLO, response_format=Clock, max_tokens=200, temperature=1.5, seed=1
    )
    assert isinstance(answer.choices[0].message.parsed, Clock)


def test_a_streamed_answer_is_parsed_into_a_model(client: OpenAI) -> None:
    with client.chat.completions.stream(
        model=NAME, messages=HELLO, response_format=Clock, max_tokens=200
    ) as stream:
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Clock)


def test_a_cut_answer_is_a_length_error(client: OpenAI) -> None:
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(
            model=NAME, messages=HELLO, response_format=Clock, max_tokens=3
        )


@pytest.mark.parametrize("choice", [CALL, "required"])
def test_a_tool_call_that_is_asked_for_comes(client: OpenAI, choice: Any) -> None:
    answer = client.chat.completions.create(
        model=NAME, messages=HELLO, tools=[WEATHER], tool_choice=choice, max_tokens=100
    )
    calls = answer.choices[0].message.tool_calls
    assert calls
    assert calls[0].type == "function"
    check_call(calls[0].function)


def test_a_streamed_tool_call_is_whole(client: OpenAI) -> None:
    with client.chat.completions.stream(
        model=NAME, messages=HELLO, tools=[WEATHER], tool_choice=CALL, max_tokens=100
    ) as stream:
        message = stream.get_final_completion().choices[0].message
    assert message.tool_calls
    check_call(message.tool_calls[0].function)


def test_an_answer_to_a_tool_call_goes_on(client: OpenAI) -> None:
    first = client.chat.completions.create(
        model=NAME, messages=HELLO, tools=[WEATHER], tool_choice=CALL, max_tokens=100
    )
    calls = first.choices[0].message.tool_calls
    assert calls
    turns = [first.choices[0].message, tool_answer(calls[0].id)]
    second = client.chat.completions.create(
        model=NAME, messages=[*HELLO, *turns], tools=[WEATHER], tool_choice="none", **GREEDY
    )
    assert second.choices[0].message.content
    assert not second.choices[0].message.tool_calls


def tool_answer(call_id: str) -> Any:
    return {"role": "tool", "tool_call_id": call_id, "content": "Sunny."}


def check_call(function: Any) -> None:
    assert function.name == "get_weather"
    arguments = json.loads(function.arguments)
    assert arguments["city"] in ("Oslo", "Rome")
    assert 1 <= arguments["days"] <= 9


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"model": "none such", "prompt": "a"}, openai.NotFoundError),
        ({"model": NAME, "prompt": "a", "temperature": -1}, openai.BadRequestError),
        ({"model": NAME, "prompt": "a", "max_tokens": "many"}, openai.BadRequestError),
        ({"model": NAME, "prompt": []}, openai.BadRequestError),
        ({"model": NAME, "prompt": "a", "stream": True, "n": 0}, openai.BadRequestError),
    ],
)
def test_errors_are_of_the_class_that_programs_catch(
    client: OpenAI, arguments: dict[str, Any], error: type[openai.APIStatusError]
) -> None:
    with pytest.raises(error) as caught:
        client.completions.create(**arguments)
    assert isinstance(caught.value.body, dict)
    assert caught.value.param in arguments
    assert caught.value.body["message"]


def test_an_unknown_model_is_not_found(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("none such")


def test_a_slow_answer_is_a_timeout_and_the_request_ends(server: Any, client: OpenAI) -> None:
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=PATIENCE_S).completions.create(
            model=NAME, prompt="Once", max_tokens=900, n=4, extra_body={"ignore_eos": True}
        )
    server.wait_for_metric("vllm:num_requests_running", 0.0)


async def test_a_wrong_key_is_an_authentication_error() -> None:
    context = make_context(FakeEngine(byte_tokenizer()), api_key=("sesame",))
    app = build_app(context, PrometheusStats("fake", 4096, [{}]), LoggingStats(10.0))
    http = httpx.AsyncClient(transport=httpx.ASGITransport(app=app))
    async with AsyncOpenAI(
        base_url="http://server/v1", api_key="wrong", max_retries=0, http_client=http
    ) as client:
        with pytest.raises(openai.AuthenticationError, match="a valid key is required"):
            await client.models.list()
        right = client.with_options(api_key="sesame")
        assert [model.id async for model in right.models.list()] == ["fake", "alias"]
