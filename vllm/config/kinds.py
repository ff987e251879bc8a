"""Kinds of values: read from text (command line, YAML, environment) or taken from Python."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final

_SIZE_UNITS: Final = {
    "": 1,
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "t": 10**12,
    "K": 2**10,
    "M": 2**20,
    "G": 2**30,
    "T": 2**40,
}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)([kKmMgGtT]?)")
_TRUE: Final = frozenset({"1", "true", "yes", "on"})
_FALSE: Final = frozenset({"0", "false", "no", "off", ""})


@dataclass(frozen=True, slots=True)
class Kind:
    """`parse` reads text and `take` checks a Python value; both raise ValueError on a bad one."""

    name: str  # as shown in help and in errors: "must be <name>"
    parse: Callable[[str], Any]
    take: Callable[[Any], Any]
    metavar: str = "VALUE"
    many: bool = False  # the command line collects several words into one value


def parse_bool(text: str) -> bool:
    word = text.strip().lower()
    if word in _TRUE:
        return True
    if word in _FALSE:
        return False
    raise ValueError(text)


def parse_size(text: str) -> int:
    """Whole numbers with units: "1k" is 1000, "1K" is 1024, "1.5k" is 1500; "1.5" is refused.

    With k, m, g and t a fraction that is left is cut off: "10.212345k" is 10212.
    """
    match = _SIZE.fullmatch(text.strip().replace("_", ""))
    if match is None:
        raise ValueError(text)
    value = Fraction(match[1]) * _SIZE_UNITS[match[2]]
    if value.denominator != 1 and not match[2].islower():
        raise ValueError(text)
    return int(value)


def _parse_object(text: str) -> dict[str, Any]:
    value = json.loads(text)  # JSONDecodeError is a ValueError
    if not isinstance(value, dict):
        raise ValueError(text)
    return value


def _take_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, int) and value in (0, 1):
        return bool(value)
    return parse_bool(value) if isinstance(value, str) else _refuse(value)


def _take_int(value: Any) -> int:
    if isinstance(value, str):
        return parse_size(value)
    if isinstance(value, bool) or value != int(value):
        return int(_refuse(value))
    return int(value)


def _take_float(value: Any) -> float:
    if isinstance(value, bool):
        _refuse(value)
    number = float(value)
    return number if number - number == 0 else float(_refuse(value))  # neither inf nor nan


def _take_text(value: Any) -> str:
    if isinstance(value, os.PathLike):
        return str(value)
    return value if isinstance(value, str) else str(_refuse(value))


def _take_texts(value: Any) -> tuple[str, ...]:
    words: Sequence[Any] = (value,) if isinstance(value, str) else tuple(value)
    return tuple(_take_text(word) for word in words)


def _take_object(value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        return _parse_object(value)
    return dict(value) if isinstance(value, dict) else dict(_refuse(value))


def _take_object_or_function(value: Any) -> Any:
    return value if callable(value) else _take_object(value)


def _refuse(value: Any) -> Any:
    raise ValueError(value)


def _same(value: Any) -> Any:
    return value


BOOL: Final = Kind("true or false", parse_bool, _take_bool)
INT: Final = Kind('a whole number ("2k" is 2000, "2K" is 2048)', parse_size, _take_int, "N")
FLOAT: Final = Kind("a number", float, _take_float, "N")
TEXT: Final = Kind("text", str, _take_text, "TEXT")
TEXTS: Final = Kind("one or more words", str, _take_texts, "WORD", many=True)
OBJECT: Final = Kind("a JSON object", _parse_object, _take_object, "JSON")
OBJECT_OR_FUNCTION: Final = Kind("a JSON object", _parse_object, _take_object_or_function, "JSON")
# Names on the command line, and also the thing itself from Python (a torch.dtype, a class).
TEXT_OR_OBJECT: Final = Kind("a name", str, _same, "NAME")


def kind_of(default: Any) -> Kind:
    """The kind of a setting that says no more than its default."""
    kinds: dict[type, Kind] = {bool: BOOL, int: INT, float: FLOAT, str: TEXT, tuple: TEXTS}
    kind = kinds.get(type(default))
    assert kind is not None, f"say which kind an option with default {default!r} has"
    return kind
