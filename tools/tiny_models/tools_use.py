"""Conversations in which the assistant calls a tool, and reads its result."""

import random
from typing import Any

from tools.tiny_models import words
from tools.tiny_models.teller import draw_being

Message = dict[str, Any]


def _tool(name: str, description: str, /, **parameters: str) -> dict[str, Any]:
    properties = {key: {"type": kind} for key, kind in parameters.items()}
    return {
        "type": "function",
        "function": {
            "name": name,
            "description": description,
            "parameters": {
                "type": "object",
                "properties": properties,
                "required": list(parameters),
            },
        },
    }


TOOLS = {
    "get_weather": _tool("get_weather", "The weather at a place", place="string"),
    "add": _tool("add", "The sum of two numbers", a="integer", b="integer"),
    "find_friend": _tool("find_friend", "Where somebody is", name="string"),
}


def _case(name: str, rng: random.Random) -> tuple[str, dict[str, Any], str, str]:
    """Question, arguments, tool result and final answer of one call."""
    if name == "get_weather":
        place = rng.choice(words.PLACES)
        weather = rng.choice(["sunny", "rainy", "windy", "cold", "warm", "foggy"])
        question = rng.choice(
            [f"What is the weather like at the {place}?", f"How is the weather at the {place}?"]
        )
        return question, {"place": place}, weather, f"It is {weather} at the {place}."
    if name == "add":
        a, b = rng.randint(10, 999), rng.randint(10, 999)
        return f"What is {a} + {b}?", {"a": a, "b": b}, str(a + b), f"{a} + {b} = {a + b}."
    who, spot = draw_being(rng).name, rng.choice(words.SPOTS)
    return f"Where is {who}?", {"name": who}, spot, f"{who} is {spot}."


def draw(rng: random.Random) -> tuple[list[Message], list[dict[str, Any]]]:
    """Messages of one call, and the tools offered with them."""
    names = rng.sample(list(TOOLS), rng.randint(1, len(TOOLS)))
    chosen = rng.choice(names)
    question, arguments, result, answer = _case(chosen, rng)
    call = {"type": "function", "function": {"name": chosen, "arguments": arguments}}
    messages: list[Message] = [
        {"role": "user", "content": question},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": result},
        {"role": "assistant", "content": answer},
    ]
    return messages, [TOOLS[name] for name in names]
