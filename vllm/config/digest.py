"""The settings of a process in short, to be compared with another's."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any, Final

from vllm.config.option import is_local
from vllm.config.vllm import GROUPS, VllmConfig

_ADDRESS: Final = re.compile(r" at 0x[0-9a-f]+")


def digests(config: VllmConfig) -> dict[str, str]:
    """Of each section of the configuration a digest, equal where all values are; no secrets.

    What is of one machine does not count: its settings (`local` options) and its paths.
    """
    return {group: _digest(getattr(config, group.replace(" ", "_"))) for group in GROUPS}


def _digest(section: Any) -> str:
    return hashlib.blake2b(repr(_ordered(section)).encode(), digest_size=16).hexdigest()


def _ordered(value: Any) -> Any:
    """`value` in a form whose text does not depend on addresses or on the order of sets."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [
            (field.name, _ordered(getattr(value, field.name)))
            for field in dataclasses.fields(value)
            if field.repr and not is_local(field)
        ]
    if isinstance(value, Mapping):
        return sorted((str(key), _ordered(item)) for key, item in value.items())
    if isinstance(value, PurePath):
        return "a path"
    if isinstance(value, set | frozenset):
        return sorted(repr(_ordered(item)) for item in value)
    if isinstance(value, list | tuple):
        return [_ordered(item) for item in value]
    if isinstance(value, type) or callable(value):
        return f"{value.__module__}.{getattr(value, '__qualname__', type(value).__qualname__)}"
    try:
        return type(value).__qualname__, _ordered(vars(value))
    except TypeError:  # it has no attributes
        return _ADDRESS.sub("", str(value))
