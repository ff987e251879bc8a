"""`litellm`, as a library: by the names of both providers that reach a server like this."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from tests.clients.shapes import HELLO, SUM, SUM_ANSWER, WEATHER
from tests.entrypoints.openai.real_server import NAME

pytestmark = pytest.mark.engine
PROVIDERS = ("openai", "hosted_vllm")


@pytest.fixture
def options(base_url: str) -> dict[str, Any]:
    return {"api_base": base_url, "api_key": "none", "temperature": 0, "num_retries": 0}


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_chat_is_answered_and_streamed(provider: str, options: dict[str, Any]) -> None:
    import litellm

    call = {"model": f"{provider}/{NAME}", "messages": SUM, **options}
    answer = litellm.completion(**call)
    assert answer.choices[0].message.content == SUM_ANSWER
    assert answer.usage.completion_tokens > 0
    chunks = litellm.completion(stream=True, **call)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == SUM_ANSWER


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_a_chat_is_answered_asynchronously(provider: str, options: dict[str, Any]) -> None:
    import litellm

    answer = await litellm.acompletion(model=f"{provider}/{NAME}", messages=SUM, **options)
    assert answer.choices[0].message.content == SUM_ANSWER


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_tool_is_called(provider: str, options: dict[str, Any]) -> None:
    import litellm

    answer = litellm.completion(
        model=f"{provider}/{NAME}",
        messages=HELLO,
        tools=[copy.deepcopy(WEATHER)],  # litellm takes parts of it out
        tool_choice={"type": "function", "function": {"name": "get_weather"}},
        max_tokens=100,
        **options,
    )
    call = answer.choices[0].message.tool_calls[0]
    assert json.loads(call.function.arguments)["city"] in ("Oslo", "Rome")


def test_a_text_is_completed(options: dict[str, Any]) -> None:
    import litellm

    answer = litellm.text_completion(
        model=f"text-completion-openai/{NAME}", prompt="Once upon a time", max_tokens=8, **options
    )
    assert answer.choices[0].text


def test_an_unknown_model_is_not_found(options: dict[str, Any]) -> None:
    import litellm

    with pytest.raises(litellm.NotFoundError):
        litellm.completion(model="hosted_vllm/none", messages=SUM, **options)
