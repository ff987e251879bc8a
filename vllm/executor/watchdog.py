"""How long the executor waits for its ranks, and what it says when that was too long."""

from __future__ import annotations

import enum
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Final

from vllm.envs import Environment
from vllm.executor.base import ExecutorDied
from vllm.executor.rank_state import RankState

_STEP_LIMIT: Final = "VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS"
_READY_LIMIT: Final = "VLLM_ENGINE_READY_TIMEOUT_S"


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds; see the variables."""

    step_s: float
    ready_s: float
    tick_s: float = 0.5  # between looks at the ranks while the executor waits

    @classmethod
    def read(cls) -> Limits:
        env = Environment()
        return cls(env.VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS, env.VLLM_ENGINE_READY_TIMEOUT_S)


class Kind(enum.Enum):
    """Of a request to the ranks."""

    START = enum.auto()  # all of it until the model is loaded
    WARM_UP = enum.auto()
    STEP = enum.auto()
    CALL = enum.auto()


@dataclass(frozen=True, slots=True)
class Awaited:
    """A request that not all ranks have answered."""

    kind: Kind
    number: int  # of a step: the plan's; -1 of others


class Watchdog:
    """Counts the time of the oldest unanswered request.

    Time of a start or a step counts unless a rank compiles or warms up. Warm-ups and calls may take
    as long as they take; but when all ranks that have not answered wait in collectives, nobody is
    left to end it, and time counts.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._request = -1  # the number of the one that the time is of
        self._waited_s = 0.0

    def look(
        self,
        request: int,
        awaited: Awaited,
        missing: Collection[int],
        states: Sequence[RankState],
        lapse_s: float,
    ) -> None:
        """`request` numbers the oldest unanswered one, which lacks the answers of ranks `missing`.

        Raises ExecutorDied when it has waited for too long.
        """
        if request != self._request and awaited.kind is not Kind.START:
            self._waited_s = 0.0
        self._request = request
        now_s = time.monotonic()
        if _counts(awaited.kind)(states, missing, now_s):
            self._waited_s += lapse_s
        if self._waited_s > self._limit_s(awaited.kind):
            raise ExecutorDied(self._accusation(awaited, missing, states, now_s))

    def _limit_s(self, kind: Kind) -> float:
        is_step = _variable(kind) == _STEP_LIMIT
        return self._limits.step_s if is_step else self._limits.ready_s

    def _accusation(
        self,
        awaited: Awaited,
        missing: Collection[int],
        states: Sequence[RankState],
        now_s: float,
    ) -> str:
        limit_s = f"{self._limit_s(awaited.kind):g} s"
        variable = _variable(awaited.kind)
        match awaited.kind:
            case Kind.START:
                what = f"the ranks did not load the model within {limit_s}"
            case Kind.WARM_UP:
                what = f"the ranks waited for each other in warm-up for {limit_s}"
            case Kind.STEP:
                what = f"step {awaited.number} took longer than {limit_s}"
            case Kind.CALL:
                what = f"the ranks waited for each other in a call for {limit_s}"
        # Who waits in a collective waits for somebody else.
        ranks = sorted(states, key=lambda s: (s.rank not in missing, bool(s.collective), s.rank))
        told = [
            f"{s.name} {'has not answered' if s.rank in missing else 'has answered'}: "
            f"{s.described(now_s)}"
            for s in ranks
        ]
        return (
            f"{what} ({variable}): {'; '.join(told)}. If nothing is wrong with them but that they "
            f"are slow, raise {variable}."
        )


def _variable(kind: Kind) -> str:
    return _STEP_LIMIT if kind in (Kind.STEP, Kind.CALL) else _READY_LIMIT


_Counts = Callable[[Sequence[RankState], Collection[int], float], bool]


def _counts(kind: Kind) -> _Counts:
    return _nobody_compiles if kind in (Kind.START, Kind.STEP) else _nobody_moves


def _nobody_compiles(states: Sequence[RankState], missing: Collection[int], now_s: float) -> bool:
    return not any(state.is_compiling for state in states)


def _nobody_moves(states: Sequence[RankState], missing: Collection[int], now_s: float) -> bool:
    return all(states[rank].is_stuck(now_s) for rank in missing)
