"""The ranks of all nodes, as node 0 has them: its own processes, and those of the other nodes."""

from __future__ import annotations

import select
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from vllm.distributed.place import Place
from vllm.executor.local_ranks import LocalRanks
from vllm.executor.nodes.link import Kind
from vllm.executor.nodes.meeting import Nodes, free_port
from vllm.executor.nodes.peers import Peers
from vllm.executor.rank_state import RankState
from vllm.executor.ranks import RankMain
from vllm.messages.rank import Joined


class NodeRanks:
    """Implements Ranks."""

    def __init__(self, local: LocalRanks, nodes: Nodes, settings: Joined) -> None:
        """`local` runs the ranks of this node; `settings` are compared with those of the others."""
        self.local = local
        self._nodes = nodes
        self._peers = Peers(nodes, settings)
        self._poll = select.poll()

    def start(self, main: RankMain, places: Sequence[Place], on_wait: Callable[[], None]) -> None:
        listening, _ = self._peers.listen()
        # Where ranks of all copies meet, if they do. Else rank 0, which is here, listens.
        rendezvous = places[0].rendezvous or f"{self._nodes.host}:{free_port(listening)}"
        self._peers.meet(places, lambda _: rendezvous, on_wait)
        address = self._nodes.own_ip or listening
        self.local.start(main, own_places(places, 0, rendezvous, address), on_wait)
        for fd in (self.local.fileno(), *self._peers.filenos()):
            self._poll.register(fd, select.POLLIN)

    def put(self, request: bytes) -> None:
        self._peers.put(request)
        self.local.put(request)

    def ready(self, timeout_s: float | None) -> Iterator[tuple[int, bytes]]:
        events = dict(self._poll.poll(None if timeout_s is None else timeout_s * 1000))
        yield from self._peers.replies(events)
        if not events or self.local.fileno() in events:
            yield from self.local.ready(0)
        self._peers.check_lives()

    def states(self, lapse_s: float) -> list[RankState]:
        self._peers.check_lives()
        return self.local.states(lapse_s) + self._peers.states()

    def kill(self) -> None:
        self._peers.tell(Kind.KILL)
        self.local.kill()
        self._peers.leave()

    def stop(self) -> None:
        self._peers.tell(Kind.STOP)
        self.local.stop()
        self._peers.leave()


def own_places(places: Sequence[Place], node: int, rendezvous: str, address: str) -> list[Place]:
    """Those of one node, whose ranks meet the others at `rendezvous`."""
    return [
        replace(place, rendezvous=rendezvous, address=address)
        for place in places
        if place.node == node
    ]
