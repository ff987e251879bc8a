"""torch.hpu."""

from __future__ import annotations

from hpu_emulator import _C


def is_available() -> bool:
    return _C.device_count() > 0


def device_count() -> int:
    return int(_C.device_count())


def current_device() -> int:
    return int(_C.current_device())


def is_initialized() -> bool:
    return True


def _lazy_init() -> None:
    """What torch calls before the first tensor on the device."""


def _is_in_bad_fork() -> bool:
    return False
