"""The actors of an engine, one in the bundle of each rank or copy of the model."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from vllm.config.ray_start import RayStart
from vllm.distributed.groups import SINGLE, Group
from vllm.errors import ConfigError
from vllm.executor.base import ExecutorDied
from vllm.executor.ray_cluster.bundles import Need, check_supply, choose
from vllm.executor.ray_cluster.seat import Seat, SeatFacts
from vllm.executor.ray_cluster.session import Session
from vllm.logger import init_logger
from vllm.version import __version__

logger = init_logger(__name__)

_CODES: Final = re.compile("\x1b\\[[0-9;]*m")  # colours of a terminal
_TICK_S: Final = 0.5
_OF_NODE: Final = 0.001  # of the one that Ray gives each node, to be placed there
_LIMIT: Final = "VLLM_ENGINE_READY_TIMEOUT_S"


class Seats:
    """Takes bundles of the program's placement group, or makes a group of its own."""

    def __init__(self, session: Session, start: RayStart, need: Need, limit_s: float) -> None:
        """`limit_s`: for the bundles, and then for the actors, to be there."""
        self._ray = session.ray
        self._start = start
        self._need = need
        self._limit_s = limit_s
        self._group: Any = None  # that has the bundles
        self._own_group: Any = None  # the same, if it is the engine's
        self._bundles: list[int] = []  # by rank or copy
        self._actors: list[Any] = []  # by rank or copy
        self._calls: dict[Any, int] = {}  # rank or copy, by the call that its actor is in

    def take(
        self,
        count: int,
        on_wait: Callable[[], None],
        nodes: Sequence[str] = (),
        part: Group = SINGLE,
    ) -> list[SeatFacts]:
        """The actors of so many ranks or copies, by number. Raises ConfigError and ExecutorDied.

        `nodes`: addresses of where a placement group of the engine's own has them; () for anywhere.
        `part`: which of several engines this is that take as many each of the program's group.
        """
        if not self._start.placement_group:
            part = SINGLE
        self._group = self._make_group(count, on_wait, nodes)
        table = self._ray.util.placement_group_table(self._group)
        chosen = choose(
            self._need,
            count * part.size,
            table["bundles"],
            table["bundles_to_node_id"],
            self._ray.get_runtime_context().get_node_id(),
        )
        self._bundles = chosen[part.rank * count : (part.rank + 1) * count]
        for index in self._bundles:
            self._actors.append(self._actor_in(index))
        return self._facts(on_wait)

    def run(self, agents: Mapping[int, tuple[bytes, Mapping[str, str]]]) -> None:
        """Let these actors run an agent each, and the others hold what they have.

        An agent is given as the pickle of its start and its variables.
        """
        for rank, actor in enumerate(self._actors):
            if rank in agents:
                self.start(rank, agents[rank])
            else:
                self._calls[actor.hold.remote()] = rank

    def renew(self, numbers: Sequence[int]) -> list[Any]:
        """Other actors in the place of these, in their bundles. Returns calls for `facts_of`."""
        asked = []
        for number in numbers:
            self.forget(number)
            with suppress(Exception):  # it has ended
                self._ray.kill(self._actors[number])
            self._actors[number] = self._actor_in(self._bundles[number])
            asked.append(self._actors[number].facts.remote())
        return asked

    def facts_of(self, asked: Sequence[Any]) -> list[SeatFacts] | None:
        """Of actors, once all are there; None before. Raises ExecutorDied."""
        there, _ = self._ray.wait(list(asked), num_returns=len(asked), timeout=0)
        for call in there:
            _, why = self._answer(call)
            if why:
                raise ExecutorDied(why)
        return list(self._ray.get(list(asked))) if len(there) == len(asked) else None

    def start(self, number: int, agent: tuple[bytes, Mapping[str, str]]) -> None:
        """Let an actor run an agent, as `run` does."""
        call = self._actors[number].run_agent.remote(__version__, *agent)
        self._calls[call] = number

    def fault(self, timeout_s: float = 0.0) -> tuple[int, str]:
        """Whose actor has ended within `timeout_s`, and why; "" if none has."""
        if not self._calls:
            return -1, ""
        if not self._ray.is_initialized():  # calls would begin it anew
            return 0, "the program has left the Ray cluster"
        try:
            ended, _ = self._ray.wait(list(self._calls), num_returns=1, timeout=timeout_s)
        except Exception as error:
            return 0, f"Ray does not answer: {error}"
        for call in ended:
            said, why = self._answer(call)
            return self._calls[call], str(said or why)
        return -1, ""

    def forget(self, number: int) -> None:
        """Say no more of the end of this actor."""
        self._calls = {call: each for call, each in self._calls.items() if each != number}

    def wait_for_end(self, numbers: Sequence[int], limit_s: float) -> None:
        """Until these actors have ended, which were told to."""
        calls = [call for call, number in self._calls.items() if number in numbers]
        if calls and self._ray.is_initialized():
            with suppress(Exception):  # the cluster may be gone
                self._ray.wait(calls, num_returns=len(calls), timeout=limit_s)

    def end(self) -> None:
        """Give the bundles back. May be called again."""
        actors, group = self._actors, self._own_group
        self._actors, self._calls, self._own_group = [], {}, None
        if not self._ray.is_initialized():
            return
        for actor in actors:
            with suppress(Exception):  # the cluster may be gone
                self._ray.kill(actor)
        if group is not None:
            with suppress(Exception):
                self._ray.util.remove_placement_group(group)

    def _actor_in(self, bundle: int) -> Any:
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        need = self._need
        options = self._ray.remote(Seat).options(
            num_cpus=need.amount if need.resource == "CPU" else 0,
            resources={} if need.resource == "CPU" else need.resources,
            scheduling_strategy=PlacementGroupSchedulingStrategy(self._group, bundle),
        )
        return options.remote()

    def _make_group(self, count: int, on_wait: Callable[[], None], nodes: Sequence[str]) -> Any:
        from ray.util.placement_group import PlacementGroup

        if self._start.placement_group:
            group_id = self._ray.PlacementGroupID(bytes.fromhex(self._start.placement_group))
            return PlacementGroup(group_id)
        has = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        check_supply(self._need, count, has)
        bundles = [dict(self._need.resources) for _ in range(count)]
        for bundle, node in zip(bundles, nodes, strict=False):
            bundle[f"node:{node}"] = _OF_NODE
        self._own_group = self._ray.util.placement_group(bundles, strategy="PACK")
        self._wait(
            lambda: bool(self._own_group.wait(1)),  # whole seconds
            f"{count} bundles of {self._need.amount:g} {self._need.resource}: others have "
            "taken what the Ray cluster has",
            on_wait,
        )
        return self._own_group

    def _facts(self, on_wait: Callable[[], None]) -> list[SeatFacts]:
        asked = [actor.facts.remote() for actor in self._actors]

        def are_there() -> bool:
            there, _ = self._ray.wait(asked, num_returns=len(asked), timeout=_TICK_S)
            for call in there:
                _, why = self._answer(call)
                if why:
                    rank = asked.index(call)
                    raise ExecutorDied(
                        f"the actor of {self._need.noun} {rank} did not start: {why}"
                    )
            return len(there) == len(asked)

        listed = ", ".join(map(str, self._bundles))
        self._wait(
            are_there,
            f"an actor in each of the bundles {listed}: what this program itself uses of one is "
            f"not free for a {self._need.noun} (VLLM_RAY_BUNDLE_INDICES names others)",
            on_wait,
        )
        return list(self._ray.get(asked))

    def _wait(self, is_there: Callable[[], bool], what: str, on_wait: Callable[[], None]) -> None:
        began_s = time.monotonic()
        is_logged = False
        while not is_there():
            on_wait()
            waited_s = time.monotonic() - began_s
            if waited_s > self._limit_s:
                raise ConfigError(
                    f"Ray did not provide within {self._limit_s:g} s ({_LIMIT}) {what}."
                )
            if waited_s > 5.0 and not is_logged:
                is_logged = True
                logger.info("Waiting for %s", what)

    def _answer(self, call: Any) -> tuple[Any, str]:
        """What a call that is over has returned, or None and why it has failed."""
        try:
            return self._ray.get(call), ""
        except Exception as error:  # of Ray's, which has many kinds
            return None, _CODES.sub("", " ".join(str(error).split()))
