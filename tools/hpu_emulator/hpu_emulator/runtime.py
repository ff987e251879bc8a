"""Puts the emulated device into torch."""

from __future__ import annotations

from functools import partial
from types import ModuleType

import torch
from hpu_emulator import _C, fallbacks, modules, recipes, strict, syncs
from hpu_emulator.errors import IndexRangeError
from hpu_emulator.settings import Settings, read

SETTINGS: Settings = read()
_is_registered = False


def register(device_module: ModuleType) -> None:
    """Once per process; `device_module` becomes torch.hpu."""
    global _is_registered
    if _is_registered:
        return
    _is_registered = True
    _configure(SETTINGS)
    for switch in SETTINGS.strict:
        strict.enable(switch)
    _C.set_handler("acquire", partial(modules.acquire, settings=SETTINGS))
    _C.set_handler("sync", syncs.on_sync)
    _C.set_handler("fallback", fallbacks.on_fallback)
    _C.set_handler("compilation", recipes.on_compilation)
    _C.set_handler("bad_index", _on_bad_index)
    torch._register_device_module("hpu", device_module)


def _configure(settings: Settings) -> None:
    num_devices = len(settings.visible_modules)
    _C.set_device_count(num_devices)
    for index in range(num_devices):
        _C.set_memory_limit(index, settings.memory_bytes)
    _C.set_lazy(settings.is_lazy)
    _C.set_max_ops(settings.max_ops_per_graph)
    _C.set_compile_only(settings.compile_only)
    _C.set_int64_narrowing(not settings.int64_support)
    _C.set_tanh_gelu(settings.tanh_gelu)
    _C.set_negative_indices(settings.negative_indices)
    _C.set_place_on_cpu(settings.place_on_cpu)


def _on_bad_index(op: str, index: int, size: int) -> None:
    if strict.is_strict("index"):
        raise IndexRangeError(f"{op}: index {index} is out of range for a dimension of {size}")
