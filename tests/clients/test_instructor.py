"""`instructor`: answers as pydantic models, in the modes that a server must help with."""

from __future__ import annotations

from typing import Annotated

import pytest
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel, ConfigDict, Field

from tests.clients.shapes import HELLO, SUM, Clock
from tests.entrypoints.openai.real_server import NAME

pytestmark = pytest.mark.engine


class Owner(BaseModel):
    name: Annotated[str, Field(max_length=8)]


class Anything(BaseModel):
    model_config = ConfigDict(extra="allow")


@pytest.mark.parametrize("mode", ["JSON_SCHEMA", "TOOLS"])
def test_an_answer_is_a_model(base_url: str, mode: str) -> None:
    import instructor

    client = OpenAI(base_url=base_url, api_key="none", max_retries=0)
    patched = instructor.from_openai(client, mode=instructor.Mode[mode])
    clock = patched.chat.completions.create(
        model=NAME, messages=HELLO, response_model=Clock, max_tokens=200, max_retries=0
    )
    assert isinstance(clock, Clock)


def test_an_answer_in_json_mode_is_an_object(base_url: str) -> None:
    import instructor

    # This mode sends no schema but in words, which a model of a million parameters does not follow.
    client = OpenAI(base_url=base_url, api_key="none", max_retries=0)
    patched = instructor.from_openai(client, mode=instructor.Mode.JSON)
    answer = patched.chat.completions.create(
        model=NAME, messages=SUM, response_model=Anything, max_tokens=900, max_retries=0, seed=1
    )
    assert isinstance(answer, Anything)


async def test_an_answer_is_a_model_asynchronously(base_url: str) -> None:
    import instructor

    async with AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0) as client:
        patched = instructor.from_openai(client, mode=instructor.Mode.TOOLS)
        clock = await patched.chat.completions.create(
            model=NAME, messages=HELLO, response_model=Clock, max_tokens=200, max_retries=0
        )
    assert isinstance(clock, Clock)


def test_a_partial_answer_fills_up(base_url: str) -> None:
    import instructor

    client = OpenAI(base_url=base_url, api_key="none", max_retries=0)
    patched = instructor.from_openai(client, mode=instructor.Mode.JSON_SCHEMA)
    states = list(
        patched.chat.completions.create_partial(
            model=NAME, messages=HELLO, response_model=Owner, max_tokens=200, temperature=0
        )
    )
    # Every field is optional in the schema that this sends.
    assert states
    assert all(isinstance(state.name, str | None) for state in states)
