"""Ranks on machines of a Ray cluster. The engine itself is node 0, which has no ranks."""

from __future__ import annotations

import select
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from vllm import envs
from vllm.distributed.groups import Group
from vllm.distributed.place import Place
from vllm.envs import Environment
from vllm.executor.base import ExecutorDied
from vllm.executor.control import WorkerType
from vllm.executor.nodes.link import Kind
from vllm.executor.nodes.meeting import Nodes, Peer
from vllm.executor.nodes.peers import Peers
from vllm.executor.rank_state import RankState
from vllm.executor.ranks import RankMain
from vllm.executor.ray_cluster.bundles import Need
from vllm.executor.ray_cluster.environment import travelling
from vllm.executor.ray_cluster.node_start import NodeStart
from vllm.executor.ray_cluster.seat import SeatFacts, modules_of
from vllm.executor.ray_cluster.seats import Seats
from vllm.executor.ray_cluster.session import THREADS, Session
from vllm.logger import init_logger
from vllm.messages.rank import Joined

if TYPE_CHECKING:
    from vllm.config.vllm import VllmConfig

logger = init_logger(__name__)

_LAST_WORDS_S: Final = 1.0  # for Ray to say why an actor has ended


class RayRanks:
    """Implements Ranks: seats in the cluster, and an agent on each machine that has some."""

    def __init__(self, config: VllmConfig, worker_type: WorkerType, settings: Joined) -> None:
        """`worker_type` makes the workers; `settings` are compared with those of the others."""
        self._start = config.parallel.ray
        self._need = Need.of(config.device.device)
        # Of the copies of the model that this machine's engine cores have.
        self._part = Group(config.parallel.local_copy, config.parallel.data_parallel_size_local)
        self._worker_type = worker_type
        self._settings = settings
        self._session: Session | None = None
        self._seats: Seats | None = None
        self._peers: Peers | None = None
        self.places: list[Place] = []  # where Ray has put the ranks
        self.addresses: list[str] = []  # of their machines, by rank
        self._poll = select.poll()

    def start(self, main: RankMain, places: Sequence[Place], on_wait: Callable[[], None]) -> None:
        # `main` has what this machine has resolved; agents resolve the arguments on theirs.
        limit_s = Environment().VLLM_ENGINE_READY_TIMEOUT_S
        given = travelling(envs.whole())  # before a machine is asked for
        if self._start.has_threads_of_actor:
            given.pop(THREADS, None)
        self._session = session = Session(self._start)
        self._seats = seats = Seats(session, self._start, self._need, limit_s)
        facts = seats.take(len(places), on_wait, part=self._part)
        self.places = _placed(places, facts)
        self.addresses = [fact.address for fact in facts]
        for place, address in zip(self.places, self.addresses, strict=True):
            logger.info("Rank %d is on node %d (%s)", place.rank, place.node, address)
        nodes = Nodes(
            count=1 + max(place.node for place in self.places),
            own=0,
            host=Environment().VLLM_HOST_IP or session.ray.util.get_node_ip_address(),
            port=0,
            limit_s=limit_s,
            source="the address of the engine's machine; VLLM_HOST_IP names another",
            advice="Its log in Ray says what it waits for.",
        )
        peers = Peers(nodes, self._settings)
        host, port = peers.listen()
        self._peers = peers
        seats.run(self._agents(session, replace(nodes, host=host, port=port), facts, given))
        peers.meet(self.places, self._rendezvous, on_wait)
        for fd in peers.filenos():
            self._poll.register(fd, select.POLLIN)

    def _rendezvous(self, peers: Sequence[Peer]) -> str:
        """Where ranks of all copies meet, if they do; or where rank 0 listens on its node."""
        first = self.places[0]
        if first.rendezvous:
            return first.rendezvous
        peer = next(peer for peer in peers if peer.node == first.node)
        return f"{peer.address}:{peer.hello.free_port}"

    def _agents(
        self,
        session: Session,
        nodes: Nodes,
        facts: Sequence[SeatFacts],
        given: Mapping[str, str],
    ) -> dict[int, tuple[bytes, Mapping[str, str]]]:
        """What the agent of each node is started with, by the first rank there; see Seats.run."""
        found: dict[int, tuple[bytes, Mapping[str, str]]] = {}
        for node in range(1, nodes.count):
            own = [place.rank for place in self.places if place.node == node]
            there = replace(nodes, own=node, own_address=self.addresses[own[0]])
            start = NodeStart(self._start.arguments, self.places, there, self._worker_type)
            variables = {**given, **modules_of([facts[rank] for rank in own])}
            found[own[0]] = session.ray.cloudpickle.dumps(start), variables
        return found

    def put(self, request: bytes) -> None:
        assert self._peers is not None, "not started"
        try:
            self._peers.put(request)
        except ExecutorDied as died:
            raise self._explained(died) from None

    def ready(self, timeout_s: float | None) -> Iterator[tuple[int, bytes]]:
        assert self._peers is not None, "not started"
        events = dict(self._poll.poll(None if timeout_s is None else timeout_s * 1000))
        try:
            yield from self._peers.replies(events)
            self._peers.check_lives()
        except ExecutorDied as died:
            raise self._explained(died) from None

    def states(self, lapse_s: float) -> list[RankState]:
        if self._peers is None or self._seats is None:
            return []
        self._peers.check_lives()
        rank, why = self._seats.fault()
        if why:
            raise self._peers.lost(self.places[rank].node, self.addresses[rank], why)
        return sorted(self._peers.states(), key=lambda state: state.rank)

    def kill(self) -> None:
        self._end(Kind.KILL)

    def stop(self) -> None:
        self._end(Kind.STOP)

    def _end(self, kind: Kind) -> None:
        peers, seats, session = self._peers, self._seats, self._session
        self._seats = self._session = None
        try:
            if peers is not None:
                peers.tell(kind)
                peers.leave()
        finally:
            if seats is not None:
                seats.end()
            if session is not None:
                session.end()

    def _explained(self, died: ExecutorDied) -> ExecutorDied:
        """With what Ray knows, where it knows something."""
        _, why = ("", "") if self._seats is None else self._seats.fault(_LAST_WORDS_S)
        return ExecutorDied(f"{died}. Ray: {why}") if why and why not in str(died) else died


def _placed(places: Sequence[Place], facts: Sequence[SeatFacts]) -> list[Place]:
    """`places` on the nodes where Ray has put them, which are numbered from 1, by rank."""
    ranks: dict[str, list[int]] = {}  # by id of a Ray node
    for place, fact in zip(places, facts, strict=True):
        ranks.setdefault(fact.node, []).append(place.rank)
    numbers = {node: number for number, node in enumerate(ranks, start=1)}
    return [
        replace(
            place,
            node=numbers[fact.node],
            local_rank=ranks[fact.node].index(place.rank),
            local_size=len(ranks[fact.node]),
        )
        for place, fact in zip(places, facts, strict=True)
    ]
