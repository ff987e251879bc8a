"""The directory of one engine: sockets of its processes, and files that they map."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final

PREFIX: Final = "vllm-"
LOCK: Final = "owner"
# A socket's path may have 107 characters, which a long TMPDIR would exceed.
MAX_PARENT_CHARS: Final = 70


class Scratch:
    """Owned by the process that made it, which holds a lock on a file in it for as long as it
    lives: one that nobody holds is left over, and the next to be made removes it. Processes that
    outlive their owner for a moment remove it, too.
    """

    def __init__(self) -> None:
        parent = tempfile.gettempdir()
        parent = parent if len(parent) < MAX_PARENT_CHARS else "/tmp"
        sweep(Path(parent))
        self.path = tempfile.mkdtemp("", PREFIX, parent)
        # Under its name only once it is locked: others look for the name.
        unnamed = f"{self.path}/{LOCK}-"
        self._fd = os.open(unnamed, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        os.rename(unnamed, f"{self.path}/{LOCK}")

    def remove(self) -> None:
        """May be called again."""
        remove(self.path)
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def remove(path: str) -> None:
    shutil.rmtree(path, ignore_errors=True)


def sweep(parent: Path) -> None:
    """Remove what processes of this user left that were killed."""
    for path in parent.glob(f"{PREFIX}*"):
        with suppress(OSError):
            if path.is_symlink() or path.stat().st_uid != os.geteuid():
                continue
            fd = os.open(path / LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                remove(str(path))
            finally:
                os.close(fd)
