"""Copies of the model on machines of a Ray cluster, where an actor runs their agent.

Ray places them and starts the agents. What agents and cores say takes the ways of any copies on
other machines.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from vllm import envs
from vllm.config.vllm import VllmConfig
from vllm.engine.core_handle import MOST_STARTS
from vllm.envs import Environment
from vllm.errors import ConfigError, EngineDeadError
from vllm.executor.base import ExecutorDied
from vllm.executor.ray_cluster.bundles import Need, check_supply, spread
from vllm.executor.ray_cluster.environment import travelling
from vllm.executor.ray_cluster.node_start import CopiesStart
from vllm.executor.ray_cluster.seat import SeatFacts, modules_of
from vllm.executor.ray_cluster.seats import Seats
from vllm.executor.ray_cluster.session import THREADS, Session
from vllm.logger import init_logger

logger = init_logger(__name__)

_LOCAL: Final = "--data-parallel-size-local"
_LOOK_S: Final = 0.5
_STEADY_S: Final = 60.0  # for which an agent has run that did not fail to start
_FREE_S: Final = 1.0  # between looks at what the cluster has free
_END_S: Final = 15.0  # for agents to end their cores


@dataclass(slots=True)
class Placed:
    """The copies on one machine."""

    numbers: range
    seats: list[int]  # of these copies; the actor of the first runs the agent
    facts: list[SeatFacts]
    asked: list[Any] = field(default_factory=list)  # calls of actors that are to start again
    num_ends: int = 0  # of agents, in a row
    since_s: float = field(default_factory=time.monotonic)  # the last one

    @property
    def address(self) -> str:
        return self.facts[0].address

    @property
    def name(self) -> str:
        return f"copies {self.numbers.start} to {self.numbers.stop - 1} ({self.address})"


class RayCopies:
    """Owns a connection to the cluster, actors on its machines, and a thread that watches them."""

    def __init__(self, config: VllmConfig) -> None:
        """Takes room for all copies. Raises ConfigError and EngineDeadError."""
        parallel = config.parallel
        self._start = parallel.ray
        self._limit_s = Environment().VLLM_ENGINE_READY_TIMEOUT_S
        self._need = Need.of(config.device.device).of_copies(parallel.world_size)
        self._variables = travelling(envs.whole())
        if self._start.has_threads_of_actor:
            self._variables.pop(THREADS, None)
        self._ends = threading.Event()
        self._is_up = threading.Event()
        self._thread: threading.Thread | None = None
        self._session = Session(self._start)
        self._seats = Seats(self._session, self._start, self._need, self._limit_s)
        try:
            facts = self._seats.take(
                parallel.data_parallel_size, _wait, self._nodes(parallel.data_parallel_size)
            )
        except ExecutorDied as died:
            self.stop()
            raise EngineDeadError(str(died)) from None
        except BaseException:
            self.stop()
            raise
        self._machines = _by_machine(facts)
        host = (
            parallel.data_parallel_address
            or Environment().VLLM_HOST_IP
            or self._session.ray.util.get_node_ip_address()
        )
        # As the agents have it, whose settings are compared with these.
        self.config = replace(config, parallel=replace(parallel, data_parallel_address=host))

    def start(self, on_end: Callable[[range, str], None]) -> None:
        """Start the agents. `on_end` is told of copies that do not come again, from a thread."""
        self._seats.run({m.seats[0]: self._agent(m) for m in self._machines})
        self._thread = threading.Thread(
            target=self._watch, args=(on_end,), name="ray-copies", daemon=True
        )
        self._thread.start()

    def keep_up(self) -> None:
        """The copies are up: from now on agents that end are started again."""
        self._is_up.set()

    def stop(self) -> None:
        """Give back what Ray gave, once the agents have ended, who have been told to."""
        if self._ends.is_set():
            return
        self._ends.set()
        if self._thread is not None:
            self._thread.join()
            self._seats.wait_for_end([m.seats[0] for m in self._machines], _END_S)
        self._seats.end()
        self._session.end()

    def _nodes(self, count: int) -> list[str]:
        """Where each copy goes; [] where the program's own placement group says so."""
        start, ray = self._start, self._session.ray
        if start.placement_group:
            if start.copies_here >= 0:
                raise ConfigError(
                    f"{_LOCAL} {start.copies_here}: this program is in a placement group of Ray's, "
                    f"whose bundles the copies take. Leave {_LOCAL} out."
                )
            return []
        from ray._private.state import available_resources_per_node

        here = ray.util.get_node_ip_address()
        until_s = time.monotonic() + self._limit_s
        while True:
            nodes = {
                node["NodeID"]: (node["NodeManagerAddress"], node["Resources"])
                for node in ray.nodes()
                if node["Alive"]
            }
            all_there = dict(nodes.values())
            all_there = _allowed(all_there)
            check_supply(self._need, count, list(all_there.values()))
            self._check_here(count, all_there, here)
            free = available_resources_per_node()  # type: ignore[no-untyped-call]
            free_there = {
                nodes[each][0]: has
                for each, has in free.items()
                if each in nodes and nodes[each][0] in all_there
            }
            found = spread(self._need, count, free_there, here, start.copies_here)
            if found is not None:
                return found
            if time.monotonic() > until_s:
                room = sum(map(self._need.room, free_there.values()))
                raise ConfigError(
                    f"The {count} copies ({self._need.sizes}) need {self._need.amount:g} "
                    f"{self._need.resource} of one node each, and others have left room for {room} "
                    f"({self._need.room(free_there.get(here, {}))} on this machine, "
                    f"{here}) for {self._limit_s:g} s (VLLM_ENGINE_READY_TIMEOUT_S)."
                )
            time.sleep(_FREE_S)

    def _check_here(self, count: int, nodes: Mapping[str, Mapping[str, float]], here: str) -> None:
        """Raises ConfigError unless the nodes can have the copies as the user wants them."""
        asked = self._start.copies_here
        room = self._need.room(nodes.get(here, {}))
        if asked < 0 or spread(self._need, count, nodes, here, asked) is not None:
            return
        raise ConfigError(
            f"{_LOCAL} {asked}: each of the {count} copies needs {self._need.amount:g} "
            f"{self._need.resource} of one node, and this machine ({here}) has room for {room}, "
            f"the others for {sum(map(self._need.room, nodes.values())) - room}. Leave {_LOCAL} "
            "out."
        )

    def _agent(self, machine: Placed) -> tuple[bytes, Mapping[str, str]]:
        """What the agent of a machine is started with; see Seats.run."""
        changes = {
            "headless": True,
            "data_parallel_backend": "mp",
            "data_parallel_address": self.config.parallel.data_parallel_address,
            "data_parallel_start_rank": machine.numbers.start,
            "data_parallel_size_local": len(machine.numbers),
        }
        start = CopiesStart(self._start.arguments, changes, machine.address)
        logger.info("Ray has room for %s", machine.name)
        variables = {**self._variables, **modules_of(machine.facts)}
        return self._session.ray.cloudpickle.dumps(start), variables

    def _watch(self, on_end: Callable[[range, str], None]) -> None:
        machines = {machine.seats[0]: machine for machine in self._machines}
        while not self._ends.wait(_LOOK_S):
            seat, why = self._seats.fault()
            if not self._session.ray.is_initialized():
                for machine in self._machines:
                    on_end(machine.numbers, f"{machine.name}: {why}")
                return
            if seat >= 0:
                self._seats.forget(seat)
            if seat in machines:
                self._lose(machines[seat], why or "it was told to", on_end)
            for machine in self._machines:
                if machine.asked:
                    self._start_again(machine, on_end)

    def _lose(self, machine: Placed, why: str, on_end: Callable[[range, str], None]) -> None:
        """Ask Ray for the machine again, if its agent has not ended too often."""
        machine.asked = []
        now_s = time.monotonic()
        machine.num_ends = 1 if now_s - machine.since_s > _STEADY_S else machine.num_ends + 1
        text = f"the agent of {machine.name} has ended: {why}"
        logger.error("%s", text)
        if machine.num_ends >= MOST_STARTS or not self._is_up.is_set():
            on_end(machine.numbers, text)
            return
        machine.since_s = now_s
        machine.asked = self._seats.renew(machine.seats)

    def _start_again(self, machine: Placed, on_end: Callable[[range, str], None]) -> None:
        """Once Ray has the actors: an agent with the same copies."""
        try:
            facts = self._seats.facts_of(machine.asked)
        except ExecutorDied as died:
            self._lose(machine, str(died), on_end)
            return
        if facts is None:
            if time.monotonic() - machine.since_s > self._limit_s:
                machine.asked = []
                text = f"Ray has not provided {machine.name} again within {self._limit_s:g} s"
                on_end(machine.numbers, text)
            return
        machine.asked, machine.facts = [], facts
        machine.since_s = time.monotonic()
        self._seats.start(machine.seats[0], self._agent(machine))


def _by_machine(facts: Sequence[SeatFacts]) -> list[Placed]:
    """Copies of one machine get numbers that follow each other."""
    seats: dict[str, list[int]] = {}  # by id of a Ray node
    for seat, fact in enumerate(facts):
        seats.setdefault(fact.node, []).append(seat)
    found: list[Placed] = []
    first = 0
    for own in seats.values():
        found.append(Placed(range(first, first + len(own)), own, [facts[seat] for seat in own]))
        first += len(own)
    return found


def _allowed(nodes: Mapping[str, Mapping[str, float]]) -> dict[str, Mapping[str, float]]:
    """Nodes, by address, that the user lets have copies. Raises ConfigError."""
    text = Environment().VLLM_RAY_DP_PLACEMENT_NODE_IPS
    asked = [word.strip() for word in text.split(",") if word.strip()] or list(nodes)
    if unknown := [address for address in asked if address not in nodes]:
        raise ConfigError(
            f"VLLM_RAY_DP_PLACEMENT_NODE_IPS={text}: the Ray cluster has no node {unknown[0]}. Its "
            f"nodes are {', '.join(sorted(nodes))}."
        )
    return {address: nodes[address] for address in asked}


def _wait() -> None:
    """Signals are heard between looks."""
