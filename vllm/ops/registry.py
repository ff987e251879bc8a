"""Ops: a plain torch reference each, which a platform may override.

    @op
    def rms_norm(x, weight, eps): ...

defines the reference; `resolve(platform.ops())` gives, once at start-up, the table that layers call
through (`ops.rms_norm(...)`). `tests/ops` compares every override with its reference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

REFERENCES: dict[str, Callable[..., Any]] = {}


class Ops(SimpleNamespace):
    """The op table of one platform: attribute `name` is the function chosen for op `name`."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        raise AttributeError(f"no op named {name!r}; known: {', '.join(sorted(REFERENCES))}")


def op(reference: F) -> F:
    """Register `reference` as the op of its name."""
    name = reference.__name__
    assert name not in REFERENCES, f"op {name} is defined twice"
    REFERENCES[name] = reference
    return reference


def resolve(overrides: Mapping[str, Callable[..., Any]]) -> Ops:
    """The op table with `overrides` in place of the references they name."""
    unknown = set(overrides) - set(REFERENCES)
    assert not unknown, f"overrides of ops that do not exist: {sorted(unknown)}"
    return Ops(**{**REFERENCES, **overrides})
