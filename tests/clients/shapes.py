"""Forms of answers that the tests of several clients ask for: small, so that they end."""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

HELLO: list[Any] = [{"role": "user", "content": "Tell me a short story."}]
# The shipped model knows this one, and then ends.
SUM: list[Any] = [{"role": "user", "content": "What is 12 + 7?"}]
SUM_ANSWER = "12 + 7 = 19."


class Color(str, Enum):
    RED = "red"
    BLUE = "blue"


class Clock(BaseModel):
    """A clock that somebody lost."""

    model_config = ConfigDict(extra="forbid")

    color: Color
    is_old: bool
    owner: Annotated[str, Field(max_length=8)]


WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "enum": ["Oslo", "Rome"]},
                "days": {"type": "integer", "minimum": 1, "maximum": 9},
            },
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
