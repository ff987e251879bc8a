"""Diagnostics."""

from __future__ import annotations

import sys

from hpu_emulator import _C, fallbacks, recipes


def _get_fallback_op_count() -> dict[str, int]:
    return dict(fallbacks.counts())


def _get_jit_cache_size() -> int:
    """Recipes known to this process."""
    return int(_C.num_recipes())


def _clear_jit_cache() -> None:
    recipes.forget()


def _flush_disk_cache() -> None:
    """Recipes are written to disk as they are compiled: there is nothing left to flush."""


def _dump_memory_reporter() -> None:
    for index in range(_C.device_count()):
        print(f"hpu:{index} {_C.memory_stats(index)}", file=sys.stderr)


def _hg_print(text: str) -> None:
    print(text, file=sys.stderr)
