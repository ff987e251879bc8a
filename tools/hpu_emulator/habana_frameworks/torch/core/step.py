"""Where a lazy graph ends."""

from __future__ import annotations

from hpu_emulator import _C


def mark_step(device_str: str = "", sync: bool = False) -> None:
    _C.flush()
