"""Modules: the devices of the box, each used by one process at a time."""

from __future__ import annotations

import fcntl
import os
import tempfile
from pathlib import Path
from typing import IO

from hpu_emulator import _C
from hpu_emulator.settings import Settings, visible_modules

_held: dict[int, IO[str]] = {}  # by module id, until the process ends
_by_index: dict[int, int] = {}
_is_forked = False


def _lock_directory() -> Path:
    default = Path(tempfile.gettempdir()) / f"hpu-emulator-{os.getuid()}"
    directory = Path(os.environ.get("HPU_EMULATOR_LOCKS", default))
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def acquire(index: int, settings: Settings) -> None:
    """Takes a module for device `index` of this process; raises RuntimeError when none is free."""
    if _is_forked:
        raise RuntimeError(
            "Cannot re-initialize HPU in forked subprocess. To use HPU with multiprocessing, "
            "you must use the 'spawn' start method"
        )
    visible = visible_modules(settings.num_modules)
    chosen = os.environ.get("HLS_MODULE_ID", "").strip() if index == 0 else ""
    candidates = (int(chosen),) if chosen else visible
    for module in candidates:
        if module in visible and module not in _held and _lock(module):
            _by_index[index] = module
            return
    raise RuntimeError(
        "synStatus=8 [Device not found] Device acquire failed. "
        f"No free module among {', '.join(map(str, candidates)) or 'none'} "
        f"(visible: {', '.join(map(str, visible)) or 'none'})"
    )


def module_of(index: int) -> int | None:
    """Id of the module that device `index` has acquired."""
    return _by_index.get(index)


def _lock(module: int) -> bool:
    file = open(_lock_directory() / f"module-{module}.lock", "w", encoding="utf-8")  # noqa: SIM115
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return False
    _held[module] = file
    return True


def is_in_bad_fork() -> bool:
    return _is_forked


def _note_fork() -> None:
    global _is_forked
    _is_forked = bool(_held)
    if _is_forked:
        _C.forget_acquired_devices()


os.register_at_fork(after_in_child=_note_fork)
