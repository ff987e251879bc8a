"""Forms of output, and what tells whether a text has one."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jsonschema

from vllm.sampling_params import StructuredOutputsParams

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "kind": {"enum": ["cat", "dog"]},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 4}, "maxItems": 2},
    },
    "required": ["name", "age", "kind", "tags"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class Form:
    name: str
    params: dict[str, Any]
    has: Callable[[str], bool]

    def __str__(self) -> str:
        return self.name

    def structured(self, **options: Any) -> StructuredOutputsParams:
        return StructuredOutputsParams(**self.params, **options)


def follows(schema: Any) -> Callable[[str], bool]:
    def has(text: str) -> bool:
        jsonschema.validate(json.loads(text), schema)
        return True

    return has


def matches(pattern: str) -> Callable[[str], bool]:
    return lambda text: re.fullmatch(pattern, text) is not None


FORMS = [
    Form("json", {"json": PERSON}, follows(PERSON)),
    Form("regex", {"regex": "[a-c]{2,6}-[0-9]{3}"}, matches("[a-c]{2,6}-[0-9]{3}")),
    Form("choice", {"choice": ["red", "green", "dark red"]}, matches("red|green|dark red")),
    Form(
        "ebnf",
        {"grammar": 'root ::= "(" root ")" | [xyz] [xyz]'},
        lambda text: matches(r"\(*[xyz]{2}\)*")(text) and text.count("(") == text.count(")"),
    ),
]
