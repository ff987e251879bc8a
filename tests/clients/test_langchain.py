"""`langchain-openai`: chat models and language models of LangChain."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.clients.shapes import SUM_ANSWER, WEATHER, Clock
from tests.entrypoints.openai.real_server import NAME

if TYPE_CHECKING:
    from langchain_openai import ChatOpenAI

pytestmark = pytest.mark.engine
SUM = "What is 12 + 7?"


@pytest.fixture(scope="module")
def chat(base_url: str) -> ChatOpenAI:
    from langchain_openai import ChatOpenAI

    options: dict[str, Any] = {"temperature": 0, "max_tokens": 100, "max_retries": 0}
    return ChatOpenAI(model=NAME, base_url=base_url, api_key="none", **options)


def test_a_chat_model_is_invoked_with_usage(chat: ChatOpenAI) -> None:
    answer = chat.invoke([("system", "Be brief."), ("human", SUM)])
    assert answer.content
    assert answer.usage_metadata["output_tokens"] > 0
    assert answer.response_metadata["finish_reason"] == "stop"


def test_a_chat_model_streams_what_it_says_at_once(chat: ChatOpenAI) -> None:
    assert "".join(chunk.text for chunk in chat.stream(SUM)) == SUM_ANSWER
    assert chat.invoke(SUM).content == SUM_ANSWER


def test_a_batch_is_answered_in_order(chat: ChatOpenAI) -> None:
    answers = chat.batch([SUM, "What is 1 + 1?"])
    assert answers[0].content == SUM_ANSWER
    assert answers[1].content.startswith("1 + 1")


async def test_a_chat_model_answers_asynchronously(chat: ChatOpenAI) -> None:
    assert (await chat.ainvoke(SUM)).content == SUM_ANSWER
    assert "".join([chunk.text async for chunk in chat.astream(SUM)]) == SUM_ANSWER


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_output_has_the_structure_asked_for(chat: ChatOpenAI, method: Any) -> None:
    assert isinstance(chat.with_structured_output(Clock, method=method).invoke("A clock."), Clock)


def test_bound_tools_are_called(chat: ChatOpenAI) -> None:
    from langchain_core.messages import HumanMessage, ToolMessage

    bound = chat.bind_tools([WEATHER], tool_choice="get_weather")
    answer = bound.invoke("Weather?")
    assert [call["name"] for call in answer.tool_calls] == ["get_weather"]
    assert answer.tool_calls[0]["args"]["city"] in ("Oslo", "Rome")
    result = ToolMessage("Sunny.", tool_call_id=answer.tool_calls[0]["id"])
    assert chat.invoke([HumanMessage("Weather?"), answer, result]).type == "ai"
    merged = None
    for chunk in bound.stream("Weather?"):
        merged = chunk if merged is None else merged + chunk
    assert merged is not None
    assert merged.tool_calls[0]["args"] == answer.tool_calls[0]["args"]


def test_a_language_model_completes_and_streams(base_url: str) -> None:
    from langchain_openai import OpenAI

    options: dict[str, Any] = {"temperature": 0, "max_tokens": 12, "max_retries": 0}
    model = OpenAI(model=NAME, base_url=base_url, api_key="none", **options)
    whole = model.invoke("Once upon a time")
    assert whole
    assert "".join(model.stream("Once upon a time")) == whole
    assert len(model.generate(["One day", "Once"]).generations) == 2
