"""The other nodes of an executor, as node 0 has them: a link to each, and signs of life of each."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from typing import Final

from vllm.distributed.place import Place
from vllm.executor.base import ExecutorDied
from vllm.executor.nodes.life import Lives
from vllm.executor.nodes.link import Frame, Kind, LinkClosed
from vllm.executor.nodes.meeting import Meeting, Nodes, Peer
from vllm.executor.rank_state import Activity, RankState
from vllm.logger import init_logger
from vllm.messages.rank import Joined

logger = init_logger(__name__)

_LAST_WORDS_S: Final = 1.0  # for a node that is gone to say why
_STOP_S: Final = 20.0  # for an agent to end its ranks


class Peers:
    """Every node but node 0. A request goes to each of them once."""

    def __init__(self, nodes: Nodes, settings: Joined) -> None:
        """`settings` are compared with those of the other nodes."""
        self._nodes = nodes
        self._settings = settings
        self._meeting: Meeting | None = None
        self._lives: Lives | None = None
        self._peers: list[Peer] = []
        self._ranks: dict[int, list[int]] = {}  # of each node
        self._began_s = 0.0

    def listen(self) -> tuple[str, int]:
        """Address and port at which the other nodes are awaited from now on. Raises ConfigError."""
        self._meeting = Meeting(self._nodes, self._settings)
        host, port = self._meeting.listener.getsockname()[:2]
        return str(host), int(port)

    def meet(
        self,
        places: Sequence[Place],
        rendezvous: Callable[[Sequence[Peer]], str],
        on_wait: Callable[[], None],
    ) -> str:
        """Wait for all nodes, and let them start the ranks of `places`. After `listen`.

        `rendezvous` makes host:port, where the ranks meet; it is returned. Raises ConfigError and
        ExecutorDied, as does `on_wait`, which is called about twice a second here and in `put`.
        """
        assert self._meeting is not None, "listen comes first"
        self._on_wait = on_wait
        self._began_s = time.monotonic()
        for place in places:
            self._ranks.setdefault(place.node, []).append(place.rank)
        self._peers = self._meeting.gather(on_wait)
        at = rendezvous(self._peers)
        self._meeting.welcome(at)
        self._lives = Lives(self._peers, self._meeting.listener)
        return at

    def filenos(self) -> list[int]:
        """Descriptors to poll: readable when `replies` has something."""
        return [peer.link.fileno() for peer in self._peers]

    def put(self, request: bytes) -> None:
        """Raises ExecutorDied if a node is gone."""
        for peer in self._peers:
            try:
                peer.link.put(Kind.REQUEST, request, on_wait=self._on_wait)
            except LinkClosed as closed:
                raise self._gone(peer, str(closed)) from None

    def replies(self, readable: Collection[int]) -> Iterator[tuple[int, bytes]]:
        """Replies that have come through the `readable` descriptors, as (rank, reply).

        Raises ExecutorDied if a node is gone or has failed.
        """
        for peer in self._peers:
            if peer.link.fileno() not in readable:
                continue
            try:
                frames = peer.link.frames()
            except LinkClosed as closed:
                raise self._gone(peer, str(closed)) from None
            for frame in frames:
                if frame.kind is not Kind.REPLY:
                    raise self._failed(peer, frame)
                yield frame.rank, frame.payload

    def check_lives(self) -> None:
        """Raises ExecutorDied if a node gives no sign of life."""
        for peer in self._peers:
            if self._lives is not None and (why := self._lives.fault(peer.node)):
                raise self._gone(peer, why)

    def states(self) -> list[RankState]:
        """What the ranks of all nodes did a moment ago."""
        found: list[RankState] = []
        for peer in self._peers:
            ranks = self._ranks.get(peer.node, [])
            known = self._lives.states(peer.node) if self._lives else []
            found += known if len(known) == len(ranks) else map(self._unknown, ranks)
        return found

    def tell(self, kind: Kind) -> None:
        """STOP or KILL, to all nodes that still listen."""
        for peer in self._peers:
            with suppress(LinkClosed, _Stuck):
                peer.link.put(kind, on_wait=_give_up)

    def leave(self) -> None:
        """Wait until the other nodes have ended their ranks, and forget them. May be called
        again."""
        lost = [peer for peer in self._peers if self._lives and self._lives.fault(peer.node)]
        if self._lives is not None:
            self._lives.stop()
            self._lives = None
        until_s = time.monotonic() + _STOP_S
        for peer in self._peers:
            if peer not in lost and not _has_ended(peer, until_s):
                logger.error("%s has not ended its ranks within %g s", peer.name, _STOP_S)
            peer.link.close()
        self._peers = []
        if self._meeting is not None:
            self._meeting.close()

    def lost(self, node: int, address: str, why: str) -> ExecutorDied:
        """The error of a node that is of no use any more, whether it has come or not."""
        for peer in self._peers:
            if peer.node == node:
                return self._gone(peer, why)
        ranks = ", ".join(map(str, self._ranks.get(node, [])))
        return ExecutorDied(f"node {node} ({address}), with rank {ranks}, does not start: {why}")

    def _gone(self, peer: Peer, why: str) -> ExecutorDied:
        """With the node's own last words, where it has any."""
        until_s = time.monotonic() + _LAST_WORDS_S
        with suppress(LinkClosed):
            while peer.link.wait(max(0.0, until_s - time.monotonic())):
                for frame in peer.link.frames():
                    if frame.kind is not Kind.REPLY:
                        return self._failed(peer, frame)
        doing = [
            f"rank {state.rank} was {state.doing()}"
            for state in (self._lives.states(peer.node) if self._lives else [])
        ]
        ranks = ", ".join(doing or [f"rank {rank}" for rank in self._ranks[peer.node]])
        return ExecutorDied(f"{peer.name} is lost: {why}. There, {ranks}")

    def _failed(self, peer: Peer, frame: Frame) -> ExecutorDied:
        assert frame.kind is Kind.FAULT, frame
        return ExecutorDied(f"{peer.name}: {frame.payload.decode()}")

    def _unknown(self, rank: int) -> RankState:
        """Of a rank of which nothing has been heard."""
        began_s = self._began_s
        return RankState(
            rank, 0, 0.0, Activity.STARTING, 0, began_s, None, None, 0.0, False, "", 0.0
        )


class _Stuck(Exception):
    """The other end takes nothing."""


def _give_up() -> None:
    raise _Stuck


def _has_ended(peer: Peer, until_s: float) -> bool:
    try:
        while peer.link.wait(max(0.0, until_s - time.monotonic())):
            peer.link.frames()
    except LinkClosed:
        return True
    return False
