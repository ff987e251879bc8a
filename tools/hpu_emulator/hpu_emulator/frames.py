"""Where in the program something was caused."""

from __future__ import annotations

import linecache
import os
import sys
from dataclasses import dataclass
from types import FrameType

import torch

_HIDDEN = tuple(
    os.path.join(path, "")
    for path in (
        os.path.dirname(torch.__file__),
        os.path.dirname(__file__),
        os.path.join(os.path.dirname(os.path.dirname(__file__)), "habana_frameworks"),
    )
)
MAX_FRAMES = 30


@dataclass(frozen=True, slots=True)
class Frame:
    file: str
    line: int
    function: str

    def __str__(self) -> str:
        code = linecache.getline(self.file, self.line).strip()
        return f"{self.file}:{self.line} in {self.function}: {code}"


def here() -> tuple[Frame, ...]:
    """Innermost first; frames of torch and of the emulator are left out."""
    frames: list[Frame] = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and len(frames) < MAX_FRAMES:
        file = frame.f_code.co_filename
        if not file.startswith(_HIDDEN) and not file.startswith("<frozen"):
            frames.append(Frame(file, frame.f_lineno, frame.f_code.co_name))
        frame = frame.f_back
    return tuple(frames)


def text(frames: tuple[Frame, ...], limit: int = 6) -> str:
    return "".join(f"\n    at {frame}" for frame in frames[:limit])
