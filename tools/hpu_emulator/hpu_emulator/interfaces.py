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


def chosen() -> str | None:
    """The first whose name begins as HCCL_SOCKET_IFNAME says; else the first that leads out.

    Raises RuntimeError where the variable leaves none. None where the machine has none that is up.
    """
    names = list(_that_are_up())
    if asked := [word.strip() for word in os.environ.get(VARIABLE, "").split(",") if word.strip()]:
        found = [name for name in names if name.startswith(tuple(asked))]
        if not found:
            raise RuntimeError(
                f"HCCL: no network interface that is up begins as {VARIABLE}={','.join(asked)} "
                f"says (there are: {', '.join(names) or 'none'})"
            )
        return found[0]
    return min(names, key=_rank, default=None)


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
