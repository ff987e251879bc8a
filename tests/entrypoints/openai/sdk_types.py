"""Requests made of an SDK's own types: one for every value that a type enumerates."""

from __future__ import annotations

import types
import typing
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

import typing_extensions as te

UNIONS = (typing.Union, types.UnionType)
LITERALS = (typing.Literal, te.Literal)
WRAPPERS = (te.Required, te.NotRequired, te.Annotated)
Accepted = Mapping[str, Collection[str]]


class Case(NamedTuple):
    """`part` of a request in which `path` has `value`; the rest of it is the least there may be."""

    path: str
    value: Any
    owner: str  # the type that has the field
    part: Any


class Walker:
    """`accepted`: of paths that name the kind of an object, the kinds that the server takes. What
    else a kind holds that it does not take is not looked at."""

    def __init__(self, accepted: Accepted, texts: Mapping[str, Any]) -> None:
        self.accepted = accepted
        self.texts = texts  # by name of a field: what its text must be to be valid

    def cases(self, kind: Any, path: str = "", seen: tuple[Any, ...] = ()) -> Iterator[Case]:
        kind = bare(kind)
        origin, arguments = te.get_origin(kind), te.get_args(kind)
        if origin in LITERALS:
            for value in arguments:
                yield Case(path, value, "", value)
        elif origin in UNIONS:
            for arm in arguments:
                yield from self.cases(arm, path, seen)
        elif te.is_typeddict(kind):
            if kind not in seen:
                yield from self._fields(kind, path, (*seen, kind))
        elif origin is not None and origin is not dict and arguments:
            for case in self.cases(arguments[0], f"{path}[]", seen):
                yield case._replace(part=[case.part])

    def _fields(self, kind: Any, path: str, seen: tuple[Any, ...]) -> Iterator[Case]:
        hints = te.get_type_hints(kind, include_extras=True)
        least = self.least(kind, path)
        is_taken = self._is_taken(hints, path)
        for name, hint in hints.items():
            at = f"{path}.{name}".lstrip(".")
            if is_taken or name == "type":
                for case in self.cases(hint, at, seen):
                    owner = case.owner or kind.__name__
                    yield case._replace(owner=owner, part={**least, name: case.part})

    def _is_taken(self, hints: Mapping[str, Any], path: str) -> bool:
        taken = self.accepted.get(f"{path}.type".lstrip("."))
        if taken is None or "type" not in hints:
            return True
        return bool(set(te.get_args(bare(hints["type"]))) & set(taken))

    def _is_taken_arm(self, arm: Any, path: str) -> bool:
        arm = bare(arm)
        if not te.is_typeddict(arm):
            return False
        return self._is_taken(te.get_type_hints(arm, include_extras=True), path)

    def least(self, kind: Any, path: str) -> Any:
        """The smallest valid value."""
        kind = bare(kind)
        origin, arguments = te.get_origin(kind), te.get_args(kind)
        if origin in LITERALS:
            return arguments[0]
        if origin in UNIONS:
            arms = [arm for arm in arguments if arm is not type(None)]
            plain = [arm for arm in arms if arm in (str, int, float, bool)]
            taken = [arm for arm in arms if self._is_taken_arm(arm, path)]
            return self.least((plain or taken or arms)[0], path)
        if te.is_typeddict(kind):
            hints = te.get_type_hints(kind, include_extras=True)
            return {
                name: self.least(hint, f"{path}.{name}".lstrip("."))
                for name, hint in hints.items()
                if te.get_origin(hint) is te.Required
            }
        name = path.rpartition(".")[2]
        if name in self.texts:
            return self.texts[name]
        if origin is dict or kind in (dict, object):
            return {}
        if origin is not None and arguments:
            return [self.least(arguments[0], f"{path}[]")]
        return {str: "x", int: 1, float: 1.0, bool: True}[kind]


def bare(kind: Any) -> Any:
    """Without what says whether a field must be there."""
    while te.get_origin(kind) in WRAPPERS:
        kind = te.get_args(kind)[0]
    return kind
