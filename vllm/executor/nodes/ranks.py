"""The ranks of all nodes, as node 0 has them: its own processes, and a link to each other node."""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Final

from vllm.distributed.place import Place
from vllm.executor.base import ExecutorDied
from vllm.executor.local_ranks import LocalRanks
from vllm.executor.nodes.life import Lives
from vllm.executor.nodes.link import Frame, Kind, LinkClosed
from vllm.executor.nodes.meeting import Meeting, Nodes, Peer
from vllm.executor.rank_state import Activity, RankState
from vllm.executor.ranks import RankMain
from vllm.logger import init_logger
from vllm.messages.rank import Joined

logger = init_logger(__name__)

_LAST_WORDS_S: Final = 1.0  # for a node that is gone to say why
_STOP_S: Final = 20.0  # for an agent to end its ranks


class NodeRanks:
    """Implements Ranks. A request goes to each other node once."""

    def __init__(self, local: LocalRanks, nodes: Nodes, settings: Joined) -> None:
        """`local` runs the ranks of this node; `settings` are compared with those of the others."""
        self.local = local
        self._nodes = nodes
        self._settings = settings
        self._meeting: Meeting | None = None
        self._lives: Lives | None = None
        self._peers: list[Peer] = []
        self._ranks: dict[int, list[int]] = {}  # of each node
        self._poll = select.poll()

    def start(self, main: RankMain, places: Sequence[Place], on_wait: Callable[[], None]) -> None:
        self._on_wait = on_wait
        self._began_s = time.monotonic()
        for place in places:
            self._ranks.setdefault(place.node, []).append(place.rank)
        self._meeting = Meeting(self._nodes, self._settings)
        self._peers, rendezvous = self._meeting.gather(on_wait)
        self._lives = Lives(self._peers, self._meeting.listener)
        address = self._nodes.own_ip or self._meeting.listener.getsockname()[0]
        self.local.start(main, own_places(places, 0, rendezvous, address), on_wait)
        for fd in (self.local.fileno(), *(peer.link.fileno() for peer in self._peers)):
            self._poll.register(fd, select.POLLIN)

    def put(self, request: bytes) -> None:
        for peer in self._peers:
            try:
                peer.link.put(Kind.REQUEST, request, on_wait=self._on_wait)
            except LinkClosed as closed:
                raise self._gone(peer, str(closed)) from None
        self.local.put(request)

    def ready(self, timeout_s: float | None) -> Iterator[tuple[int, bytes]]:
        events = dict(self._poll.poll(None if timeout_s is None else timeout_s * 1000))
        for peer in self._peers:
            if peer.link.fileno() in events:
                try:
                    frames = peer.link.frames()
                except LinkClosed as closed:
                    raise self._gone(peer, str(closed)) from None
                for frame in frames:
                    if frame.kind is not Kind.REPLY:
                        raise self._failed(peer, frame)
                    yield frame.rank, frame.payload
        if not events or self.local.fileno() in events:
            yield from self.local.ready(0)
        self._check_lives()

    def states(self, lapse_s: float) -> list[RankState]:
        self._check_lives()
        found = self.local.states(lapse_s)
        for peer in self._peers:
            ranks = self._ranks[peer.node]
            known = self._lives.states(peer.node) if self._lives else []
            found += known if len(known) == len(ranks) else map(self._unknown, ranks)
        return found

    def kill(self) -> None:
        for peer in self._peers:
            with suppress(LinkClosed, _Stuck):
                peer.link.put(Kind.KILL, on_wait=_give_up)
        self.local.kill()
        self._leave()

    def stop(self) -> None:
        for peer in self._peers:
            with suppress(LinkClosed, _Stuck):
                peer.link.put(Kind.STOP, on_wait=_give_up)
        self.local.stop()
        self._leave()

    def _leave(self) -> None:
        """Wait until the other nodes have ended their ranks, and forget them."""
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

    def _check_lives(self) -> None:
        for peer in self._peers:
            if self._lives is not None and (why := self._lives.fault(peer.node)):
                raise self._gone(peer, why)

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


def own_places(places: Sequence[Place], node: int, rendezvous: str, address: str) -> list[Place]:
    """Those of one node, whose ranks meet the others at `rendezvous`."""
    return [
        replace(place, rendezvous=rendezvous, address=address)
        for place in places
        if place.node == node
    ]


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
