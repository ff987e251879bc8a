"""Recipes: what was compiled, why, and how often recipes were launched."""

from __future__ import annotations

import difflib
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field

from hpu_emulator import _C, frames, strict
from hpu_emulator.errors import RecompilationError
from hpu_emulator.recipe_text import Decoder

# Explaining a surprise compares it with so many known recipes at most, newest first.
MAX_COMPARED = 200


@dataclass(frozen=True, slots=True)
class Compilation:
    """A recipe that was asked for and not known."""

    recipe: int
    mode: str  # lazy, eager or compile
    key: str  # 32 hexadecimal digits, the same in every process
    num_ops: int
    workspace_bytes: int
    stack: tuple[frames.Frame, ...]
    words: array[int] = field(repr=False)

    def lines(self) -> list[str]:
        """One per op, with shapes."""
        return list(Decoder(self.words).lines())

    def name(self, num_ops: int = 4) -> str:
        """A short list of its ops."""
        names = [line.partition("(")[0].removeprefix("aten::") for line in self.lines()]
        names = [name for name in names if not name.startswith("alive:")]
        more = f" and {len(names) - num_ops} more" if len(names) > num_ops else ""
        return " ".join(names[:num_ops]) + more

    def __str__(self) -> str:
        return f"{self.mode} recipe of {self.num_ops} ops: {self.name()}{frames.text(self.stack)}"


_compilations: list[Compilation] = []
_known: list[Compilation] = []
_listeners: list[Callable[[Compilation], None]] = []
_stores: list[Callable[[str], bool]] = []
_num_loaded = 0


def compilations() -> list[Compilation]:
    """All since the last reset(), in order."""
    return list(_compilations)


def find(recipe: int) -> Compilation | None:
    """By its number; None for one that is not known, or was forgotten."""
    return next((known for known in _known if known.recipe == recipe), None)


def count() -> int:
    return len(_compilations)


def launches() -> int:
    """Recipes launched since the last forget(), compiled just before or not."""
    return int(_C.counts()[1])


def ops() -> int:
    """Ops the device has run since the last forget()."""
    return int(_C.counts()[2])


def loaded() -> int:
    """Recipes that were found in a store instead of being compiled."""
    return _num_loaded


def reset() -> None:
    """Starts a new list of compilations; recipes stay known."""
    global _num_loaded
    _compilations.clear()
    _num_loaded = 0


def forget() -> None:
    """As a new process: no recipe is known, nothing is counted."""
    reset()
    _known.clear()
    _C.reset_recipes()


def add_listener(listener: Callable[[Compilation], None]) -> None:
    """Called with each compilation, after it."""
    _listeners.append(listener)


def add_store(has: Callable[[str], bool]) -> None:
    """Asked for a recipe by its key before it is compiled; True: it need not be."""
    _stores.append(has)


def on_compilation(
    recipe: int, mode: str, key: str, words: bytes, num_ops: int, workspace_bytes: int
) -> None:
    global _num_loaded
    code = array("q")
    code.frombytes(words)
    made = Compilation(recipe, mode, key, num_ops, workspace_bytes, frames.here(), code)
    if any(has(key) for has in _stores):
        _num_loaded += 1
        _known.append(made)
        return
    _compilations.append(made)
    if strict.is_strict("no_compile"):
        raise RecompilationError(f"a {made}\n{difference(made)}")
    _known.append(made)
    for listener in _listeners:
        listener(made)


def difference(made: Compilation) -> str:
    """What sets a recipe apart from the nearest one that is known."""
    candidates = [known for known in reversed(_known) if known.mode == made.mode][:MAX_COMPARED]
    if not candidates:
        return f"no {made.mode} recipe is known yet"
    lines = made.lines()
    nearest = max(candidates, key=lambda known: _likeness(known, made, lines))
    changes = [
        line
        for line in difflib.unified_diff(nearest.lines(), lines, "known", "new", lineterm="", n=0)
        if not line.startswith(("---", "+++", "@@"))
    ]
    shown = "\n".join(f"  {line}" for line in changes[:20])
    return f"the nearest of {len(_known)} known recipes differs in:\n{shown}"


def _likeness(known: Compilation, made: Compilation, lines: list[str]) -> float:
    if known.num_ops != made.num_ops:
        return -abs(known.num_ops - made.num_ops)
    same = sum(ours == theirs for ours, theirs in zip(lines, known.lines(), strict=False))
    return same / max(len(lines), 1)
