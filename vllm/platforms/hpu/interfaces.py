"""The network interfaces over which ranks meet on the host."""

from __future__ import annotations

import array
import fcntl
import ipaddress
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from vllm import envs
from vllm.distributed.place import Place
from vllm.errors import ConfigError

_GLOO: Final = "GLOO_SOCKET_IFNAME"
_HCCL: Final = "HCCL_SOCKET_IFNAME"
_LOOPBACK: Final = "127.0.0.1"
_IFF_LOOPBACK: Final = 0x8
_SIOCGIFCONF: Final = 0x8912
_ENTRY_BYTES: Final = 40  # struct ifreq of 64 bits
_MOST_ENTRIES: Final = 1024


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
    """Before the first group is made, and before the plugin is loaded.

    Ranks of one machine need no network. Those of several have HCCL meet where gloo does: at the
    address of the machine, which need not be that of the first interface.
    """
    # Copies of one machine know each other by the address that every machine has.
    are_copies_here = place.dp.size > 1 and place.address == _LOOPBACK
    if place.rendezvous.startswith("/") or are_copies_here:
        _set(_GLOO, loopback())
    else:
        _set(_HCCL, envs.inherited(_GLOO) or interface_of(place.address))


def _set(variable: str, name: str | None) -> None:
    if name and not envs.inherited(variable):
        envs.pass_on(variable, name)


def loopback() -> str | None:
    for _, name in socket.if_nameindex():
        try:
            flags = int(Path(f"/sys/class/net/{name}/flags").read_text(encoding="ascii"), 16)
        except (OSError, ValueError):
            continue
        if flags & _IFF_LOOPBACK:
            return name
    return None


def interface_of(address: str) -> str | None:
    """The interface of this machine that has the IP address `address`; None if none has."""
    try:
        sought = ipaddress.ip_address(address)
    except ValueError:
        return None
    found = _with_ipv6() if sought.version == 6 else _with_ipv4()
    return next((name for name, own in found if own == sought), None)


def _with_ipv4() -> Iterator[tuple[str, ipaddress.IPv4Address]]:
    """Interfaces and their addresses, each as often as it has one."""
    room = array.array("B", bytes(_ENTRY_BYTES * _MOST_ENTRIES))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        asked = struct.pack("iP", len(room), room.buffer_info()[0])
        answer = fcntl.ioctl(any_socket, _SIOCGIFCONF, asked)
    for start in range(0, struct.unpack("iP", answer)[0], _ENTRY_BYTES):
        label, address = struct.unpack_from("16s4x4s", room, start)
        # A further address has a label such as eth0:1.
        name = label.rstrip(b"\0").decode(errors="replace").partition(":")[0]
        yield name, ipaddress.IPv4Address(address)


def _with_ipv6() -> Iterator[tuple[str, ipaddress.IPv6Address]]:
    try:
        lines = Path("/proc/net/if_inet6").read_text(encoding="ascii").splitlines()
    except OSError:  # the kernel has none
        return
    for line in lines:
        digits, *_, name = line.split()
        yield name, ipaddress.IPv6Address(int(digits, 16))
