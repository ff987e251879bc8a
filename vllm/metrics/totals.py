"""What several engine cores say of themselves, as if one engine said it."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter, lt
from typing import Final

from vllm.messages.engine import EngineStats

COUNTERS: Final = (
    *("prefix_queries", "prefix_hits", "num_preemptions", "num_steps"),
    *("num_prompt_tokens", "num_generation_tokens"),
)
GAUGES: Final = ("num_running", "num_waiting", "num_cached_blocks", "num_pending_tokens")
_counts = attrgetter(*COUNTERS)


def grown_from(last: EngineStats, engine: EngineStats) -> EngineStats:
    """What the counters of `engine` have grown from: `last`, or zeros in a core that has been
    started anew, whose counters begin again."""
    is_anew = any(map(lt, _counts(engine), _counts(last)))
    return EngineStats() if is_anew else last


class Totals:
    """Adds up the newest statistics of each core."""

    def __init__(self, num_blocks: Sequence[int] = (0,)) -> None:
        """`num_blocks`: of each core's KV cache, as far as known before its first step."""
        self.cores = [EngineStats(num_blocks=number) for number in num_blocks]
        self.ended: list[EngineStats] = []  # counters of cores that others have replaced, summed
        self.total = _sum_of(self.cores, step_s=0.0)

    def add(self, engine: EngineStats, core: int) -> EngineStats:
        """The totals with `engine`, what `core` says now.

        Counters never go down. `kv_usage` is the share of all blocks, `step_s` that of the step
        just recorded. `num_blocks` counts one block that no request can have, as a core's does.
        """
        last = self.cores[core]
        if grown_from(last, engine) is not last:
            counters = EngineStats(**{name: getattr(last, name) for name in COUNTERS})
            self.ended = [_sum_of([*self.ended, counters], step_s=0.0)]
        self.cores[core] = engine
        self.total = _sum_of([*self.cores, *self.ended], engine.step_s)
        return self.total


def _sum_of(parts: Sequence[EngineStats], step_s: float) -> EngineStats:
    if len(parts) == 1:
        return parts[0]
    sizes = [max(part.num_blocks - 1, 0) for part in parts]
    num_usable = sum(sizes)
    num_used = sum(part.kv_usage * size for part, size in zip(parts, sizes, strict=True))
    return EngineStats(
        num_blocks=num_usable + 1,
        kv_usage=num_used / num_usable if num_usable else 0.0,
        step_s=step_s,
        **{name: sum(getattr(part, name) for part in parts) for name in (*GAUGES, *COUNTERS)},
    )
