"""What a form costs to compile, estimated from its text: compilation cannot be interrupted."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, Final

from vllm.structured_params import StructuredOutputsParams

# Items that may be left out, or be names of rules that allow that.
_OPTIONAL_IN_REGEX: Final = re.compile(r"[?*]|\{0|\(\||\|\||\|\)")
_OPTIONAL_IN_RULE: Final = re.compile(r'[?*]|\{0|""|[A-Za-z_][\w.-]*')
_QUOTED: Final = re.compile(r'"(?:[^"\\\n]|\\.)+"')
_RULE: Final = re.compile(r"^\s*[?!]?[\w.-]+\s*(?:::=|:)", re.MULTILINE)


def num_optional(params: StructuredOutputsParams) -> int:
    """Most optional parts in one sequence of the form: of a rule, a pattern or an object.

    Each may be followed by any of those behind it, so work grows with a power of their number.
    """
    if params.kind == "regex":
        return len(_OPTIONAL_IN_REGEX.findall(params.spec))
    if params.kind == "grammar":
        bodies = _RULE.split(_QUOTED.sub(" ", params.spec))
        return max(len(_OPTIONAL_IN_RULE.findall(body)) for body in bodies)
    if params.kind in ("json", "structural_tag"):
        return max(_parts(json.loads(params.spec)), default=0)
    return 0


def _parts(schema: Any) -> Iterator[int]:
    """Of every pattern and every object at any depth."""
    todo = [schema]
    while todo:
        node = todo.pop()
        if isinstance(node, list):
            todo += node
        elif isinstance(node, dict):
            todo += node.values()
            if isinstance(pattern := node.get("pattern"), str):
                yield len(_OPTIONAL_IN_REGEX.findall(pattern))
            if isinstance(properties := node.get("properties"), dict):
                # An object costs what a pattern does with an eighth as many parts.
                yield len(properties) // 8
