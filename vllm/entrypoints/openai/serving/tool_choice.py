"""Which functions a request offers, and whether the model must call one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from vllm.entrypoints.openai.protocol.chat import ChatCompletionRequest
from vllm.errors import BadRequest
from vllm.parsers.deltas import MessageParser
from vllm.parsers.message import FirstCallOnly, NamedCall, PlainText, RequiredCalls
from vllm.parsers.tools.base import ToolParser, new_call_id
from vllm.structured_params import StructuredOutputsParams

FREE = ("none", "auto")


@dataclass(frozen=True, slots=True)
class Function:
    name: str
    parameters: Mapping[str, Any]  # a JSON schema


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """What a request says of tools, checked."""

    functions: tuple[Function, ...]
    choice: str  # "none", "auto", "required", or "named"
    parallel: bool  # more than one call is welcome

    @property
    def is_forced(self) -> bool:
        return self.choice not in FREE

    def parser(self, auto: type[ToolParser] | None) -> MessageParser:
        """Of the text of one choice; `auto` reads the model's own notation."""
        new_id = new_call_id if auto is None else auto.new_id
        if self.choice == "named":
            return NamedCall(self.functions[0].name, new_id)
        parser: MessageParser = PlainText()
        if self.choice == "required":
            parser = RequiredCalls(new_id)
        elif self.choice == "auto" and auto is not None:
            parser = calls = auto()
            calls.names = frozenset(function.name for function in self.functions)
        return parser if self.parallel else FirstCallOnly(parser)

    def under(self, form: StructuredOutputsParams | None) -> ToolChoice:
        """What may be a call in a text of the form a request asks for: nothing, but for tags, which
        are made for calls."""
        if form is None or form.kind == "structural_tag":
            return self
        return self if self.is_forced else replace(self, choice="none")

    def form(self) -> StructuredOutputsParams | None:
        """The grammar that makes the model call."""
        if self.choice == "named":
            schema = dict(self.functions[0].parameters)
        elif self.choice == "required":
            schema = _schema_of_calls(self.functions, self.parallel)
        else:
            return None
        return StructuredOutputsParams(json=schema, asked_as="tools")


def tool_choice_of(request: ChatCompletionRequest) -> ToolChoice:
    """Raises BadRequest naming the field."""
    functions = tuple(_function(i, tool) for i, tool in enumerate(request.tools or ()))
    choice = request.tool_choice
    if choice is None:
        choice = "auto" if functions else "none"
    parallel = request.parallel_tool_calls is not False
    if isinstance(choice, dict):
        return ToolChoice((_named(choice, functions),), "named", parallel)
    if not functions:
        # An empty list is what clients send that take functions away one by one.
        if choice == "required" or (choice == "auto" and request.tools is None):
            raise BadRequest(
                f"tool_choice {choice!r} needs tools to choose from; give tools, or leave it out",
                "tool_choice",
            )
        choice = "none"
    return ToolChoice(functions, choice, parallel)


def _function(index: int, tool: Any) -> Function:
    where = f"tools[{index}]"
    if tool.get("type", "function") != "function":
        raise BadRequest(
            f"{where}.type is {tool['type']!r}; only functions can be called: 'function'",
            f"{where}.type",
        )
    function = tool.get("function")
    if not isinstance(function, dict):
        raise BadRequest(f"{where}.function must be an object with a name", f"{where}.function")
    name = function.get("name")
    if not isinstance(name, str) or not name:
        raise BadRequest(f"{where}.function.name must be text", f"{where}.function.name")
    parameters = function.get("parameters")
    if parameters is None:
        parameters = {}
    if not isinstance(parameters, dict):
        raise BadRequest(
            f"{where}.function.parameters must be a JSON schema", f"{where}.function.parameters"
        )
    return Function(name, {"type": "object", **parameters})


def _named(choice: dict[str, Any], functions: tuple[Function, ...]) -> Function:
    named = choice.get("function")
    name = named.get("name") if isinstance(named, dict) else None
    found = next((f for f in functions if f.name == name), None)
    if choice.get("type") != "function" or found is None:
        offered = ", ".join(repr(f.name) for f in functions) or "none"
        raise BadRequest(
            "tool_choice must be 'none', 'auto', 'required' or {'type': 'function', 'function': "
            f"{{'name': …}}}} with a name of tools, which are {offered}; got {choice!r:.200}",
            "tool_choice",
        )
    return found


def _schema_of_calls(functions: tuple[Function, ...], parallel: bool) -> dict[str, Any]:
    """Of a list of calls: each names a function and has its parameters."""
    definitions = {
        f"parameters_{i}": _moved(dict(f.parameters), f"#/$defs/parameters_{i}")
        for i, f in enumerate(functions)
    }
    calls = [
        {
            "type": "object",
            "properties": {
                "name": {"const": f.name},
                "parameters": {"$ref": f"#/$defs/parameters_{i}"},
            },
            "required": ["name", "parameters"],
            "additionalProperties": False,
        }
        for i, f in enumerate(functions)
    ]
    schema: dict[str, Any] = {
        "type": "array",
        "items": calls[0] if len(calls) == 1 else {"anyOf": calls},
        "minItems": 1,
        "$defs": definitions,
    }
    if not parallel:
        schema["maxItems"] = 1
    return schema


def _moved(node: Any, root: str) -> Any:
    """A schema whose references into itself still hold once it stands at `root` of another."""
    if isinstance(node, list):
        return [_moved(item, root) for item in node]
    if not isinstance(node, dict):
        return node
    moved = {key: _moved(value, root) for key, value in node.items()}
    reference = moved.get("$ref")
    if isinstance(reference, str) and reference.startswith("#"):
        moved["$ref"] = root + reference[1:]
    return moved
