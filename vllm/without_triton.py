"""Starting without a compiler that nothing here can use."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path


def leave_out_triton() -> None:
    """Tell torch, where it is a build for the CPU, that there is no triton.

    xgrammar brings it along. Importing it takes torch a second at every start, and it complains of
    leaks at every exit.
    """
    if "triton" not in sys.modules and "+cpu" in _torch_version():
        sys.modules["triton"] = None  # type: ignore[assignment]


def _torch_version() -> str:
    """The file that says it. importlib.metadata would take longer than all else of our own."""
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        return ""
    try:
        return Path(found.origin).with_name("version.py").read_text(encoding="utf-8")
    except OSError:
        return ""
