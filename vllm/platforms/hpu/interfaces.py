"""The network interfaces over which ranks meet on the host."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Final

from vllm import envs
from vllm.distributed.place import Place
from vllm.errors import ConfigError

_GLOO: Final = "GLOO_SOCKET_IFNAME"
_HCCL: Final = "HCCL_SOCKET_IFNAME"
_IFF_LOOPBACK: Final = 0x8


def check_interfaces() -> None:
    """Raises ConfigError where a variable names none of this machine: ranks would wait forever."""
    present = [name for _, name in socket.if_nameindex()]
    # Gloo takes names, HCCL how names begin.
    starts = tuple(name[:end] for name in present for end in range(1, len(name) + 1))
    for variable, known in ((_GLOO, present), (_HCCL, starts)):
        text = (envs.inherited(variable) or "").strip()
        unknown = [name.strip() for name in text.split(",") if name.strip() not in known]
        if text and unknown:
            raise ConfigError(
                f"{variable}={text}: this machine has no network interface {unknown[0]!r}; it has "
                f"{', '.join(present)}. Name one of them, or unset {variable}."
            )


def prepare_host_groups(place: Place) -> None:
    """Before the first group is made. Ranks of one machine need no network."""
    is_local = place.rendezvous.startswith("/")
    if is_local and not envs.inherited(_GLOO) and (name := loopback()) is not None:
        envs.pass_on(_GLOO, name)


def loopback() -> str | None:
    for _, name in socket.if_nameindex():
        try:
            flags = int(Path(f"/sys/class/net/{name}/flags").read_text(encoding="ascii"), 16)
        except (OSError, ValueError):
            continue
        if flags & _IFF_LOOPBACK:
            return name
    return None
