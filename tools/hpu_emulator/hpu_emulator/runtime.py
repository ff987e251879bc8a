"""Puts the emulated device into torch."""

from __future__ import annotations

import os
from types import ModuleType

import torch

from hpu_emulator import _C


def register(device_module: ModuleType) -> None:
    _C.set_lazy(os.environ.get("PT_HPU_LAZY_MODE", "0") != "0")
    _C.set_device_count(8)
    for index in range(8):
        _C.set_memory_limit(index, 96 << 30)
    torch._register_device_module("hpu", device_module)
