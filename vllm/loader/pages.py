"""Pages of a mapped file: dropped when they have been read, so that weights count once."""

from __future__ import annotations

import ctypes
import mmap
import re
from bisect import bisect_right
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Final

from torch import Tensor

_MAPS: Final = Path("/proc/self/maps")
_LINE: Final = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S{4}) \S+ \S+ \S+ +(.*)")


class MappedPages:
    """Where this process has mapped a file, as of the construction. None of it off Linux."""

    def __init__(self, path: Path) -> None:
        # Only what is mapped from the file can be read again; other memory would lose its contents.
        self._ranges = sorted(_ranges_of(str(path.resolve())))
        self._begins = [begin for begin, _ in self._ranges]

    def drop(self, tensor: Tensor) -> None:
        """Give back the whole pages of `tensor`, which lies in the file and was not written to.

        If it is read again the system maps them again.
        """
        size = mmap.PAGESIZE
        begin = -(-tensor.data_ptr() // size) * size
        end = (tensor.data_ptr() + tensor.nbytes) // size * size
        if begin < end and self._holds(begin, end):
            _madvise()(begin, end - begin, mmap.MADV_DONTNEED)

    def _holds(self, begin: int, end: int) -> bool:
        place = bisect_right(self._begins, begin) - 1
        return place >= 0 and end <= self._ranges[place][1]


def _ranges_of(path: str) -> list[tuple[int, int]]:
    try:
        lines = _MAPS.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return []
    found = (_LINE.fullmatch(line) for line in lines)
    return [(int(m[1], 16), int(m[2], 16)) for m in found if m is not None and m[4] == path]


@cache
def _madvise() -> Callable[[int, int, int], int]:
    function = ctypes.CDLL(None, use_errno=True).madvise
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    function.restype = ctypes.c_int
    called: Callable[[int, int, int], int] = function
    return called
