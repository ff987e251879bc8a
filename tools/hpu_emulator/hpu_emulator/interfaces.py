"""The network interface over which ranks of HCCL meet, and here send everything."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

VARIABLE: Final = "HCCL_SOCKET_IFNAME"
_IFF_UP: Final = 0x1
_LAST: Final = ("docker", "lo")  # how names begin of those that are taken where there is no other


def candidates() -> list[str]:
    """Those that are up, best first: whose names begin as HCCL_SOCKET_IFNAME says, or all of them.

    Without the variable, those that lead out come first. Raises RuntimeError where none is left.
    """
    names = list(_that_are_up())
    asked = [word.strip() for word in os.environ.get(VARIABLE, "").split(",") if word.strip()]
    if not asked:
        return sorted(names, key=_rank)
    found = [name for name in names if name.startswith(tuple(asked))]
    if not found:
        raise RuntimeError(
            f"HCCL: no network interface that is up begins as {VARIABLE}={','.join(asked)} says "
            f"(there are: {', '.join(names) or 'none'})"
        )
    return found


def _rank(name: str) -> Sequence[bool]:
    return [name.startswith(start) for start in reversed(_LAST)]


def _that_are_up() -> Iterator[str]:
    for _, name in socket.if_nameindex():
        try:
            flags = int(Path(f"/sys/class/net/{name}/flags").read_text(encoding="ascii"), 16)
        except OSError:  # it has gone, or /sys is of another namespace
            continue
        if flags & _IFF_UP:
            yield name
