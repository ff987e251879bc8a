"""How the nodes of an engine find each other: agents come to node 0, which refuses wrong ones."""

from __future__ import annotations

import errno
import secrets
import select
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from vllm.envs import Environment
from vllm.errors import ConfigError
from vllm.executor.base import ExecutorDied
from vllm.executor.handshake import compare_with_first
from vllm.executor.nodes.arrivals import Arrivals
from vllm.executor.nodes.link import Kind, Link, LinkClosed
from vllm.logger import init_logger
from vllm.messages.rank import Joined

if TYPE_CHECKING:
    from vllm.config.parallel import ParallelConfig

logger = init_logger(__name__)

_TICK_S: Final = 0.5
_UNREACHABLE_S: Final = 10.0  # for an address that no network leads to
_NO_WAY: Final = frozenset({errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EADDRNOTAVAIL})


@dataclass(frozen=True, slots=True)
class Nodes:
    """How many nodes there are, which of them this is, and where node 0 is met."""

    count: int
    own: int
    host: str
    port: int
    own_ip: str = ""  # as VLLM_HOST_IP gives it
    limit_s: float = 600.0  # for all nodes to come
    source: str = "--master-addr, --master-port"  # of the address
    own_address: str = ""  # of an agent, to connect from; "": the system chooses
    # What to do about a node that does not come.
    advice: str = (
        "Start it with the same arguments and its --node-rank and --headless; --master-addr and "
        "--master-port must lead to this machine from there."
    )

    @classmethod
    def of(cls, config: ParallelConfig) -> Nodes:
        env = Environment()
        return cls(
            config.nnodes,
            config.node_rank,
            config.master_addr,
            config.master_port,
            env.VLLM_HOST_IP,
            env.VLLM_ENGINE_READY_TIMEOUT_S,
        )

    @property
    def at(self) -> str:
        return f"{self.host}:{self.port}"


class Hello(msgspec.Struct, frozen=True):
    """The first message of an agent, on each of its two connections."""

    node: int
    start: str  # a random word: which start of an agent the connections belong to
    is_life: bool  # the connection is the one for signs of life
    own_ip: str  # VLLM_HOST_IP, where it is set
    free_port: int  # of its machine, for rank 0 to listen at
    settings: Joined


class Welcome(msgspec.Struct, frozen=True):
    rendezvous: str  # host:port, where the ranks meet


@dataclass(slots=True)
class Peer:
    """Another node, seen from node 0."""

    node: int
    address: str
    link: Link
    hello: Hello
    life: Link | None = None

    @property
    def name(self) -> str:
        return f"node {self.node} ({self.address})"


@dataclass(frozen=True, slots=True)
class Membership:
    """What an agent has when all nodes have met."""

    link: Link
    life: Link
    rendezvous: str  # host:port, for ranks
    address: str  # of this machine


class Meeting:
    """Node 0's side: where agents arrive."""

    def __init__(self, nodes: Nodes, settings: Joined) -> None:
        """Listens at once. Raises ConfigError where it cannot."""
        check_own_ip(nodes.own_ip)
        self._nodes = nodes
        self._settings = settings
        self._arrivals = _arrivals(nodes)
        self.listener = self._arrivals.listener
        self._peers: dict[int, Peer] = {}
        self._lives: dict[str, Link] = {}  # by the start that they belong to

    def gather(self, on_wait: Callable[[], None]) -> list[Peer]:
        """Wait for all nodes, and return them by number. `welcome` must follow.

        Raises ConfigError when a node says something wrong, and ExecutorDied when one does not come
        in time. Nodes that have come get the reason.
        """
        nodes = self._nodes
        port = self.listener.getsockname()[1]
        logger.info("Node 0 waits at %s:%d for %d others", nodes.host, port, nodes.count - 1)
        until_s = time.monotonic() + nodes.limit_s
        try:
            while not self._are_all_there():
                self._take_turn()
                on_wait()
                if time.monotonic() > until_s:
                    raise ExecutorDied(self._of_missing())
        except (ConfigError, ExecutorDied) as error:
            for peer in self._peers.values():
                refuse(peer.link, str(error))
            raise
        finally:
            self._arrivals.drop()
        return [self._peers[node] for node in sorted(self._peers)]

    def welcome(self, rendezvous: str) -> None:
        """Let all nodes start their ranks, which meet at `rendezvous`. Raises ExecutorDied."""
        welcome = msgspec.msgpack.encode(Welcome(rendezvous))
        for peer in self._peers.values():
            assert peer.life is not None
            peer.life.limit_unacknowledged()
            try:
                peer.link.put(Kind.WELCOME, welcome)
            except LinkClosed as closed:
                raise ExecutorDied(f"{peer.name} is gone: {closed}") from None

    def close(self) -> None:
        """All connections of nodes that have come, too. May be called again."""
        self._arrivals.close()
        peers = self._peers.values()
        links = [*self._lives.values(), *(peer.link for peer in peers)]
        for link in (*links, *(peer.life for peer in peers if peer.life is not None)):
            link.close()

    def _take_turn(self) -> None:
        poll = select.poll()
        links = {peer.link.fileno(): peer for peer in self._peers.values()}
        for fd in (*self._arrivals.filenos(), *links):
            poll.register(fd, select.POLLIN)
        for fd, _ in poll.poll(_TICK_S * 1000):
            if fd in links:
                self._look_after(links[fd])
            elif (arrived := self._arrivals.hear(fd)) is not None:
                self._meet(*arrived)

    def _look_after(self, peer: Peer) -> None:
        """Forget a node that has left; it says nothing before it is welcomed."""
        try:
            peer.link.frames()
        except LinkClosed:
            logger.warning("%s has left before all nodes had come", peer.name)
            del self._peers[peer.node]
            for link in (peer.link, peer.life):
                if link is not None:
                    link.close()

    def _meet(self, link: Link, hello: Hello) -> None:
        if hello.is_life:
            self._lives[hello.start] = link
        else:
            link.most_bytes = (1 << 32) - 1
            self._admit(Peer(hello.node, hello.own_ip or link.peer_address, link, hello))
        for peer in self._peers.values():
            if peer.life is None:
                peer.life = self._lives.pop(peer.hello.start, None)

    def _admit(self, peer: Peer) -> None:
        try:
            self._check(peer)
        except ConfigError as error:
            refuse(peer.link, str(error))
            raise
        self._peers[peer.node] = peer
        there = len(self._peers) + 1
        logger.info("%s has come: %d of %d nodes", peer.name, there, self._nodes.count)

    def _check(self, peer: Peer) -> None:
        compare_with_first(self._settings, peer.hello.settings, "node", peer.node)
        taken = self._peers.get(peer.node)
        if taken is not None or not 0 < peer.node < self._nodes.count:
            first = f"{taken.address} and {peer.address}" if taken else f"{peer.address} and node 0"
            raise ConfigError(
                f"--node-rank {peer.node} was given to two nodes, {first}. Each of the "
                f"{self._nodes.count} nodes needs a number of its own, from 0."
            )
        own_ips = {0: self._nodes.own_ip, **{n: p.hello.own_ip for n, p in self._peers.items()}}
        for node, own_ip in own_ips.items():
            if own_ip and own_ip == peer.hello.own_ip:
                raise ConfigError(
                    f"VLLM_HOST_IP={own_ip} is set on node {node} and on node {peer.node}: it is "
                    "the address of one machine. Set it on each node to its own, or nowhere."
                )

    def _are_all_there(self) -> bool:
        ready = [peer for peer in self._peers.values() if peer.life is not None]
        return len(ready) == self._nodes.count - 1

    def _of_missing(self) -> str:
        nodes = self._nodes
        missing = [str(n) for n in range(1, nodes.count) if n not in self._peers]
        return (
            f"node {', '.join(missing) or 'unknown'} of {nodes.count} has not come to {nodes.at} "
            f"within {nodes.limit_s:g} s (VLLM_ENGINE_READY_TIMEOUT_S). {nodes.advice}"
        )


def join(nodes: Nodes, settings: Joined) -> Membership:
    """An agent's side. Raises ConfigError when node 0 refuses this node, or cannot be reached."""
    check_own_ip(nodes.own_ip)
    link = _connect(nodes)
    try:
        life = Link(_connection(nodes))
        life.limit_unacknowledged()
        start = secrets.token_hex(16)
        for each in (link, life):
            hello = Hello(
                nodes.own, start, each is life, nodes.own_ip, free_port(link.own_address), settings
            )
            each.put(Kind.HELLO, msgspec.msgpack.encode(hello))
        logger.info("Node %d has reached node 0 at %s and waits for all", nodes.own, nodes.at)
        welcome = _welcomed(link, nodes)
    except (OSError, LinkClosed) as error:
        raise ConfigError(
            f"what answers at {nodes.at} ({nodes.source}) is not node 0 of an engine "
            f"of this version, or it has ended: {error}"
        ) from None
    return Membership(link, life, welcome.rendezvous, nodes.own_ip or link.own_address)


def refuse(link: Link, why: str) -> None:
    try:
        link.put(Kind.REFUSED, why.encode())
        link.finish(1.0)
    except LinkClosed:
        pass  # it does not wait for an answer
    link.close()


def check_own_ip(own_ip: str) -> None:
    """Raises ConfigError unless this machine has that address, or none is given."""
    if not own_ip:
        return
    try:
        family = socket.getaddrinfo(own_ip, 0)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind((own_ip, 0))
    except OSError as error:
        raise ConfigError(
            f"VLLM_HOST_IP={own_ip}: this machine has no such address ({error.strerror}). Set it "
            "to the address at which the other nodes reach this machine, or unset it."
        ) from None


def _arrivals(nodes: Nodes) -> Arrivals[Hello]:
    try:
        return Arrivals(nodes.host, nodes.port, Hello)
    except OSError as error:
        raise ConfigError(
            f"node 0 cannot be met at {nodes.at} ({nodes.source}): {error.strerror}. The address "
            "must be one of this machine, which is node 0, and the port free."
        ) from None


def free_port(address: str) -> int:
    """A free port of this machine, which has `address`; another program may take it before use."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


def _connect(nodes: Nodes) -> Link:
    began_s = time.monotonic()
    told = False
    while True:
        try:
            return Link(_connection(nodes))
        except OSError as error:
            why = error
        if why.errno == errno.EADDRNOTAVAIL and nodes.own_address:
            raise ConfigError(
                f"the machine of node {nodes.own} has no address {nodes.own_address}, which Ray "
                "names. Start Ray there with --node-ip-address and one that it has."
            )
        has_no_way = isinstance(why, socket.gaierror) or why.errno in _NO_WAY
        limit_s = min(_UNREACHABLE_S, nodes.limit_s) if has_no_way else nodes.limit_s
        if time.monotonic() - began_s > limit_s:
            raise ConfigError(
                f"node {nodes.own} cannot reach node 0 at {nodes.at} ({nodes.source}) within "
                f"{limit_s:g} s: {why.strerror or why}. Start node 0 with the same arguments, and "
                "give all nodes an address that leads to it."
            )
        if not told:
            told = True
            logger.info("Node 0 does not answer at %s yet (%s)", nodes.at, why.strerror or why)
        time.sleep(_TICK_S)


def _connection(nodes: Nodes) -> socket.socket:
    source = (nodes.own_address, 0) if nodes.own_address else None
    return socket.create_connection((nodes.host, nodes.port), _UNREACHABLE_S, source)


def _welcomed(link: Link, nodes: Nodes) -> Welcome:
    # Node 0 has a limit too, which began before.
    until_s = time.monotonic() + nodes.limit_s + _UNREACHABLE_S
    while time.monotonic() < until_s:
        link.wait(_TICK_S)
        for frame in link.frames():
            if frame.kind is Kind.REFUSED:
                raise ConfigError(frame.payload.decode())
            if frame.kind is Kind.WELCOME:
                return msgspec.msgpack.decode(frame.payload, type=Welcome)
    raise LinkClosed(f"it said nothing for {nodes.limit_s:g} s")
