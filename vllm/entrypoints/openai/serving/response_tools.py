"""The tools of a response in the shape of a chat's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vllm.errors import BadRequest, NotAvailable

MODES = ("none", "auto", "required")
FUNCTION_FIELDS = ("name", "description", "parameters", "strict")


def chat_tools(tools: Sequence[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
    """Raises NotAvailable for a tool that a server would have to run itself."""
    if not tools:
        return None
    return [_chat_tool(tool, f"tools[{i}]") for i, tool in enumerate(tools)]


def _chat_tool(tool: dict[str, Any], where: str) -> dict[str, Any]:
    kind = tool.get("type")
    if kind != "function":
        raise NotAvailable(
            f"{where} has type {kind!r}; this server runs no tools of its own. Declare a tool of "
            "type 'function', and run it where its call arrives",
            f"{where}.type",
        )
    if not isinstance(tool.get("name"), str) or not tool["name"]:
        raise BadRequest(f"{where}.name must be the function's name", f"{where}.name")
    check_callers(tool, where)
    function = {name: tool[name] for name in FUNCTION_FIELDS if tool.get(name) is not None}
    return {"type": "function", "function": function}


def check_callers(tool: dict[str, Any], where: str) -> None:
    """Raises NotAvailable for a tool that only code which a server runs may call."""
    callers = tool.get("allowed_callers")
    if callers is not None and (not isinstance(callers, list) or "direct" not in callers):
        raise NotAvailable(
            f"{where}.allowed_callers {callers!r:.100} is without 'direct': this server runs no "
            "code that could call a tool. Leave it out, or add 'direct'",
            f"{where}.allowed_callers",
        )


def chat_choice(
    choice: str | dict[str, Any] | None, tools: list[dict[str, Any]] | None
) -> tuple[str | dict[str, Any] | None, list[dict[str, Any]] | None]:
    """The chat's tool_choice, and the tools it leaves. Raises BadRequest."""
    if choice is None or choice in MODES:
        # Clients of responses send the default along, also without tools.
        return None if choice == "auto" and not tools else choice, tools
    if isinstance(choice, str):
        raise BadRequest(
            f"tool_choice {choice!r} must be one of {', '.join(MODES)}, or an object", "tool_choice"
        )
    kind = choice.get("type")
    if kind == "function":
        return {"type": "function", "function": {"name": _known(choice, tools)}}, tools
    if kind == "allowed_tools":
        mode, allowed = choice.get("mode"), choice.get("tools")
        if mode not in ("auto", "required") or not isinstance(allowed, list):
            raise BadRequest(
                "tool_choice of type allowed_tools needs mode, auto or required, and tools",
                "tool_choice",
            )
        names = {_known(tool, tools) for tool in allowed}
        return mode, [tool for tool in tools or () if tool["function"]["name"] in names]
    raise NotAvailable(
        f"tool_choice of type {kind!r} is not available here; use function or allowed_tools",
        "tool_choice.type",
    )


def _known(choice: Any, tools: list[dict[str, Any]] | None) -> str:
    name = choice.get("name") if isinstance(choice, dict) else None
    names = [tool["function"]["name"] for tool in tools or ()]
    if name not in names:
        raise BadRequest(
            f"tool_choice names {name!r}, which is not among the tools: {', '.join(names) or '-'}",
            "tool_choice.name",
        )
    return str(name)
