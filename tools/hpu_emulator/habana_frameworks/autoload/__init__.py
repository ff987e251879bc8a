"""`import torch` alone loads the device where PT_HPU_AUTOLOAD allows it."""

from __future__ import annotations

import importlib
import os


def autoload() -> None:
    chosen = os.environ.get("PT_HPU_AUTOLOAD", "")
    is_lazy = os.environ.get("PT_HPU_LAZY_MODE", "0") != "0"
    if chosen == "1" or (chosen != "0" and not is_lazy):
        importlib.import_module("habana_frameworks.torch")
