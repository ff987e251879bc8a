"""How the processes that torchrun has started find the driver among them, and connect to it."""

from __future__ import annotations

import itertools
import os
import secrets
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, NamedTuple

import msgspec
from torch._C._distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from vllm.distributed.launched import Launched
from vllm.envs import Environment
from vllm.errors import ConfigError
from vllm.executor.base import ExecutorDied
from vllm.executor.nodes.link import Kind, Link, LinkClosed
from vllm.executor.nodes.meeting import check_own_ip
from vllm.logger import init_logger
from vllm.messages.sibling import Hello

logger = init_logger(__name__)

_HELLO_BYTES: Final = 1 << 16
_HELLO_S: Final = 5.0
_MOST_BYTES: Final = (1 << 32) - 1
# Every engine of a process meets by itself; programs make engines in one order.
_ENGINES: Final = itertools.count()
_STORES: Final[dict[Launched, Store]] = {}


class Peer(NamedTuple):
    """A process that this one is connected to."""

    link: Link
    name: str  # for people


@dataclass(frozen=True, slots=True)
class Met:
    """What a process has when all have met."""

    store: Store  # of this engine alone
    peers: Mapping[int, Peer]  # by rank: all others of the driver, the driver of others
    address: str  # of this machine, as others reach it


def meet(launched: Launched, driver: int, limit_s: float) -> Met:
    """Connect all processes to the driver.

    Raises ConfigError where that cannot be, and ExecutorDied where a process does not come in time.
    """
    store = _store(launched, limit_s)
    address = _own_address(launched)
    if launched.rank == driver:
        return Met(store, _gather(launched, store, address, limit_s), address)
    return Met(store, {driver: _come(launched, store, driver, limit_s)}, address)


def _store(launched: Launched, limit_s: float) -> Store:
    """What all processes of this engine read and write."""
    at = f"{launched.host}:{launched.port}"
    logger.info("Rank %d meets %d others at %s", launched.rank, launched.world_size - 1, at)
    try:
        store = _program_store(launched, limit_s)
    except (RuntimeError, ValueError, OSError) as error:
        raise ConfigError(
            f"the {launched.world_size} processes cannot meet at {at} (MASTER_ADDR, MASTER_PORT): "
            f"{error}. torchrun sets both; the address must be one of the machine with RANK=0."
        ) from error
    return PrefixStore(f"vllm-engine-{next(_ENGINES)}", store)


def _program_store(launched: Launched, limit_s: float) -> Store:
    """What all processes of the program read and write.

    The process of rank 0 may serve it. One that ended with an engine could end after another
    process has come to it for the next engine, so it is kept as long as the process runs.
    """
    if launched not in _STORES:
        _STORES[launched] = next(rendezvous("env://", timeout=timedelta(seconds=limit_s)))[0]
    return _STORES[launched]


def _own_address(launched: Launched) -> str:
    own_ip = str(Environment().VLLM_HOST_IP)
    check_own_ip(own_ip)
    if launched.num_nodes == 1:
        return "127.0.0.1"
    if own_ip or launched.node == 0:
        return own_ip or launched.host
    with socket.create_connection((launched.host, launched.port)) as way:
        return str(way.getsockname()[0])


def _listener(address: str) -> socket.socket:
    try:
        family = socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((address, 0), family=family)
    except OSError as error:
        raise ConfigError(
            f"other processes cannot reach this one at {address} ({error.strerror}): set "
            "VLLM_HOST_IP to an address of this machine."
        ) from None


def _gather(launched: Launched, store: Store, address: str, limit_s: float) -> Mapping[int, Peer]:
    """The driver's side."""
    word = secrets.token_hex(16)
    until_s = time.monotonic() + limit_s
    peers: dict[int, Peer] = {}
    with _listener(address) as listener:
        host, port = listener.getsockname()[:2]
        store.set("driver", f"{host} {port} {word} {os.getpid()}")
        while len(peers) < launched.world_size - 1:
            listener.settimeout(max(0.01, until_s - time.monotonic()))
            try:
                connection = listener.accept()[0]
            except TimeoutError:
                ranks = set(range(launched.world_size)) - {launched.rank} - peers.keys()
                raise ExecutorDied(_missing(sorted(ranks), limit_s)) from None
            try:
                link = Link(connection, _HELLO_BYTES)
            except OSError:  # it has ended already, as those of port scans do
                connection.close()
                continue
            hello = _heard(link, word)
            if hello is None:
                link.close()
                continue
            link.most_bytes = _MOST_BYTES
            with suppress(LinkClosed):  # which shows when it is listened to
                link.put(Kind.WELCOME)
            peers[hello.rank] = Peer(link, _name(launched, hello.rank, hello.pid))
    return peers


def _heard(link: Link, word: str) -> Hello | None:
    """What a process says first; None if it is not one of ours."""
    until_s = time.monotonic() + _HELLO_S
    try:
        while (left_s := until_s - time.monotonic()) > 0:
            link.wait(left_s)
            for frame in link.frames():
                # Nothing follows before the welcome.
                hello = msgspec.msgpack.decode(frame.payload, type=Hello)
                is_ours = secrets.compare_digest(hello.word.encode(), word.encode())
                return hello if is_ours else None
    except (LinkClosed, msgspec.DecodeError):
        pass
    return None


def _come(launched: Launched, store: Store, driver: int, limit_s: float) -> Peer:
    """The side of every other process."""
    try:
        store.wait(["driver"], timedelta(seconds=limit_s))
        host, port, word, pid = store.get("driver").decode().split()
        link = Link(socket.create_connection((host, int(port)), limit_s))
        hello = Hello(launched.rank, word, os.getpid(), launched.node)
        link.put(Kind.HELLO, msgspec.msgpack.encode(hello))
        while not link.frames():
            if not link.wait(limit_s):
                raise LinkClosed(f"it does not answer for {limit_s:g} s")
    except RuntimeError as error:  # as a store raises when its limit is over
        raise ExecutorDied(f"{_missing([driver], limit_s)} ({error})") from error
    except (OSError, LinkClosed) as error:
        raise ExecutorDied(
            f"rank {launched.rank} cannot connect to rank {driver} at {host}:{port}: {error}. "
            "VLLM_HOST_IP, set on each machine to an address of its own, says where it is reached."
        ) from error
    return Peer(link, _name(launched, driver, int(pid)))


def _name(launched: Launched, rank: int, pid: int) -> str:
    if launched.num_nodes == 1:
        return f"rank {rank} (process {pid})"
    return f"rank {rank} (process {pid} on node {rank // launched.local_world_size})"


def _missing(ranks: list[int], limit_s: float) -> str:
    return (
        f"rank {', '.join(map(str, ranks))} has not made its engine within {limit_s:g} s "
        "(VLLM_ENGINE_READY_TIMEOUT_S). Every process that torchrun starts must make the same LLM."
    )
