"""Structural tags, as xgrammar defines them: where they hold JSON schemas."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from vllm.structured_output.grammar import GrammarError

Content = dict[str, Any]  # a format with a "json_schema"


def read_tag(text: str) -> dict[str, Any]:
    """In the notation with formats, also if it was written before there were any.

    Raises GrammarError.
    """
    tag = json.loads(text)
    if not isinstance(tag, dict):
        raise GrammarError("structural_tag must be an object")
    if "format" in tag:
        return tag
    for name in ("structures", "triggers"):
        if not isinstance(tag.get(name), list):
            raise GrammarError(f"structural_tag: {name} must be a list, or there must be a format")
    tags = [_tag_of(structure) for structure in tag["structures"]]
    triggered = {"type": "triggered_tags", "triggers": tag["triggers"], "tags": tags}
    return {"type": "structural_tag", "format": triggered}


def _tag_of(structure: Any) -> dict[str, Any]:
    if not isinstance(structure, dict) or not {"begin", "schema", "end"} <= structure.keys():
        raise GrammarError("structural_tag: each of structures needs begin, schema and end")
    schema = structure["schema"]
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except (ValueError, RecursionError) as error:
            raise GrammarError(f"structural_tag: a schema is not valid JSON: {error}") from None
    content = {"type": "json_schema", "json_schema": schema}
    return {"type": "tag", "begin": structure["begin"], "content": content, "end": structure["end"]}


def contents(tag: Any) -> Iterator[Content]:
    todo = [tag]
    while todo:
        node = todo.pop()
        if isinstance(node, list):
            todo += node
        elif isinstance(node, dict) and "json_schema" in node:
            yield node
        elif isinstance(node, dict):
            todo += node.values()


def with_contents(node: Any, replaced: Callable[[Content], Any]) -> Any:
    """The tag with something else in the place of every content."""
    if isinstance(node, list):
        return [with_contents(item, replaced) for item in node]
    if not isinstance(node, dict):
        return node
    if "json_schema" in node:
        return replaced(node)
    return {name: with_contents(value, replaced) for name, value in node.items()}


def with_regexes(node: Any, rewritten: Callable[[str], str]) -> Any:
    """The tag with its regular expressions in another notation, but for those inside of schemas."""
    if isinstance(node, list):
        return [with_regexes(item, rewritten) for item in node]
    if not isinstance(node, dict) or "json_schema" in node:
        return node
    changed = {name: with_regexes(value, rewritten) for name, value in node.items()}
    if changed.get("type") == "regex" and isinstance(pattern := changed.get("pattern"), str):
        changed["pattern"] = rewritten(pattern)
    return changed
