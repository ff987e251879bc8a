"""Which front end executes."""

from __future__ import annotations

from hpu_emulator.runtime import SETTINGS


def is_lazy() -> bool:
    return SETTINGS.is_lazy
