"""Declaring environment variables: name, default, how text becomes a value."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from vllm.errors import ConfigError

_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off"})

BOOLEAN: Final = "0 or 1"


@dataclass(frozen=True, slots=True)
class Variable:
    """One environment variable. `parse` raises ValueError on text it does not allow."""

    name: str
    default: Any
    parse: Callable[[str], Any]
    allowed: str  # for people: "... must be <allowed>"
    help: str
    has_effect: bool = True  # False: accepted, as other engines read it; `help` says why

    def read(self, environ: Mapping[str, str]) -> Any:
        """The value in `environ`, or the default. Empty is not set. Raises ConfigError."""
        text = environ.get(self.name, "").strip()
        if not text:
            return self.default
        try:
            return self.parse(text)
        except ValueError:
            raise ConfigError(
                f"environment variable {self.name}={text!r}: must be {self.allowed}. "
                f"Correct it or unset it."
            ) from None


def boolean(text: str) -> bool:
    word = text.lower()
    if word in _TRUE:
        return True
    if word in _FALSE:
        return False
    raise ValueError(text)


def one_of(*words: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text.lower() not in words:
            raise ValueError(text)
        return text.lower()

    return parse


def level(text: str) -> str:
    return one_of("debug", "info", "warning", "error", "critical")(text).upper()


def gibibytes(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise ValueError(text)
    return value


def port(text: str) -> int:
    value = int(text)
    if not 0 < value < 65536:
        raise ValueError(text)
    return value


def seconds(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value


def count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise ValueError(text)
    return value


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value


def positive_number(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise ValueError(text)
    return value


def share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise ValueError(text)
    return value
