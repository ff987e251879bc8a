"""Memory of this process that others open by a path, and that nobody can leave behind."""

from __future__ import annotations

import os


class UnnamedMemory:
    """Files without a name. They are gone once all who have opened them have ended."""

    def __init__(self) -> None:
        self._fds: list[int] = []

    def new(self, name: str) -> tuple[str, int]:
        """A new file: the path by which other processes open it, and its descriptor.

        `name` is seen in /proc alone.
        """
        fd = os.memfd_create(name)
        self._fds.append(fd)
        return f"/proc/{os.getpid()}/fd/{fd}", fd

    def close(self) -> None:
        """The paths lead nowhere from now on; may be called again."""
        while self._fds:
            os.close(self._fds.pop())
