"""Settings of the bridge that can change while a program runs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from hpu_emulator import _C

_ON = {"1", "true", "yes", "on", "y", "t"}


def _is_on(text: str) -> bool:
    return text.strip().lower() in _ON


def _apply_compile_only(text: str) -> None:
    # What was recorded before the change is launched as it was meant.
    _C.flush()
    _C.set_compile_only(_is_on(text))


# What a change does at once. All else is read from the environment where it matters.
_APPLY: dict[str, Callable[[str], None]] = {
    "PT_COMPILE_ONLY_MODE": _apply_compile_only,
    "PT_HPU_PLACE_ON_CPU": _C.set_place_on_cpu,
    "PT_HPU_FORCE_TANH_FOR_GELU": lambda text: _C.set_tanh_gelu(text == "" or _is_on(text)),
    "PT_HPU_ENABLE_NEGATIVE_INDEXING": lambda text: _C.set_negative_indices(_is_on(text)),
    "PT_HPU_MAX_COMPOUND_OP_SIZE": lambda text: _C.set_max_ops(int(text or (1 << 63) - 1)),
    "PT_HPU_ENABLE_LAZY_COLLECTIVES": lambda text: _C.set_lazy_collectives(_is_on(text)),
}


def get_config(flag: str) -> str:
    """The value as text, "" where it was never set. Raises KeyError for an unknown flag."""
    if flag not in _APPLY:
        raise KeyError(flag)
    return os.environ.get(flag, "")


def set_config(flag: str, value: object) -> None:
    if flag not in _APPLY:
        raise KeyError(flag)
    text = str(value).lower() if isinstance(value, bool) else str(value)
    _APPLY[flag](text)
    os.environ[flag] = text


@contextmanager
def env_setting(flag: str, value: object) -> Iterator[None]:
    """Sets `flag` for a block. Raises KeyError for a flag that this software does not know."""
    before = get_config(flag)
    set_config(flag, value)
    try:
        yield
    finally:
        _APPLY[flag](before)
        if before:
            os.environ[flag] = before
        else:
            os.environ.pop(flag, None)
