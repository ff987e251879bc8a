"""Starting without a compiler that nothing here can use."""

from __future__ import annotations

import importlib.metadata
import sys


def leave_out_triton() -> None:
    """Tell torch, where it is a build for the CPU, that there is no triton.

    xgrammar brings it along. Importing it takes torch a second at every start, and it complains of
    leaks at every exit.
    """
    try:
        version = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return
    if version.endswith("+cpu") and "triton" not in sys.modules:
        sys.modules["triton"] = None  # type: ignore[assignment]
