"""Standard output and error of programs that must not depend on who reads them."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress
from typing import Final

STDIN, STDOUT, STDERR = range(3)
NAMES: Final = {STDOUT: "stdout", STDERR: "stderr"}
_closed: Final[set[int]] = set()  # at the start: what is written there reaches nobody


class LenientText(io.TextIOWrapper):
    """What cannot be written (a full disk, a reader that is gone) is lost, and nobody is told."""

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError:
            return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            super().flush()


def open_standard_files() -> None:
    """Where one of the three is closed, /dev/null is in its place: the next file that is opened
    would be, and what libraries print would go there.
    """
    for fd in (STDIN, STDOUT, STDERR):
        try:
            os.fstat(fd)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != fd:
                os.dup2(null, fd)
                os.close(null)
            os.set_inheritable(fd, True)
            _closed.add(fd)


def forgive(*fds: int) -> None:
    """From here on output that fails does not fail the program, nor change its exit code.

    A stream that somebody has replaced is theirs, and stays.
    """
    open_standard_files()
    for fd in fds:
        name = NAMES[fd]
        current = getattr(sys, name)
        if current is not getattr(sys, f"__{name}__") or isinstance(current, LenientText):
            continue
        raw = io.FileIO(fd, "wb", closefd=False)
        encoding = "utf-8" if current is None else current.encoding
        lenient = LenientText(
            io.BufferedWriter(raw), encoding, "backslashreplace", line_buffering=True
        )
        setattr(sys, name, lenient)
        setattr(sys, f"__{name}__", lenient)


def last_words(text: str) -> None:
    """To standard error, or where that cannot be written, to standard output."""
    for fd, stream in ((STDERR, sys.stderr), (STDOUT, sys.stdout)):
        if fd in _closed:
            continue
        try:
            if isinstance(stream, LenientText):
                stream.flush()
                os.write(fd, f"{text}\n".encode(errors="backslashreplace"))
            else:
                print(text, file=stream, flush=True)
            return
        except OSError:
            continue
