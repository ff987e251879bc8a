"""The last minutes of all engines together, one sample per second, for the page that shows them."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from vllm.messages.engine import EngineStats
from vllm.metrics.stats import IterationStats
from vllm.metrics.totals import Totals

SAMPLE_S: Final = 1.0
MAX_SAMPLES: Final = 180
WINDOW_SAMPLES: Final = 60  # what the percentiles of the summary are of

# A percentile is exact to half of this ratio: what a chart can show.
BIN_RATIO: Final = 1.08
LOWEST_S: Final = 1e-5
HIGHEST_S: Final = 1e4
NUM_BINS: Final = math.ceil(math.log(HIGHEST_S / LOWEST_S) / math.log(BIN_RATIO)) + 1

Bins = npt.NDArray[np.int64]


class Percentiles(msgspec.Struct, array_like=True):
    """Seconds."""

    p50: float
    p95: float


class Sample(msgspec.Struct, array_like=True, kw_only=True):
    """One second of all engines: the highest of each gauge, and counts of what happened in it."""

    time: int  # seconds since the epoch, at its start
    num_running: int
    num_waiting: int
    num_used_blocks: int
    num_cached_blocks: int
    num_prompt_tokens: int
    num_generation_tokens: int
    num_steps: int
    num_preemptions: int
    prefix_queries: int  # tokens
    prefix_hits: int
    time_to_first_token: Percentiles | None
    inter_token: Percentiles | None
    step: Percentiles | None


class Summary(msgspec.Struct):
    """Of the last WINDOW_SAMPLES samples; None where nothing was measured."""

    time_to_first_token: Percentiles | None
    inter_token: Percentiles | None
    step: Percentiles | None
    prefix_hit_rate: float | None


class LiveView(msgspec.Struct):
    num_blocks: int  # that requests can have
    num_running: int  # now
    num_waiting: int
    num_used_blocks: int
    num_cached_blocks: int
    num_preemptions: int  # since the start
    summary: Summary
    fields: tuple[str, ...]  # names of a sample's values
    samples: list[Sample]  # oldest first, without gaps


class Durations:
    """Counts durations in bins of equal ratio: these add up over seconds, percentiles do not."""

    __slots__ = ("bins", "pending")

    def __init__(self) -> None:
        self.pending: list[float] = []
        self.bins: Bins | None = None

    def close(self) -> None:
        """Count what has come; a second without durations keeps no bins."""
        if self.pending:
            values = np.clip(np.array(self.pending), LOWEST_S, HIGHEST_S)
            indices = (np.log(values / LOWEST_S) / math.log(BIN_RATIO)).astype(np.int64)
            self.bins = np.bincount(indices, minlength=NUM_BINS)
            self.pending = []


def percentiles(durations: Iterable[Durations]) -> Percentiles | None:
    """Of all closed durations together."""
    bins = [part.bins for part in durations if part.bins is not None]
    if not bins:
        return None
    total = np.cumsum(np.sum(bins, axis=0))
    p50, p95 = (int(np.searchsorted(total, q * total[-1])) for q in (0.5, 0.95))
    return Percentiles(_middle_s(p50), _middle_s(p95))


def _middle_s(index: int) -> float:
    return float(f"{LOWEST_S * BIN_RATIO ** (index + 0.5):.3g}")


class Second:
    """A sample being collected, and what a summary needs of it afterwards."""

    __slots__ = (
        "inter_token",
        "kv_usage",
        "num_running",
        "num_waiting",
        "number",
        "sample",
        "step",
        "time_to_first_token",
    )

    def __init__(self, number: int, engine: EngineStats) -> None:
        """`engine`: as of its start."""
        self.number = number
        self.num_running = engine.num_running
        self.num_waiting = engine.num_waiting
        self.kv_usage = engine.kv_usage
        self.time_to_first_token = Durations()
        self.inter_token = Durations()
        self.step = Durations()
        self.sample: Sample | None = None

    def record(self, engine: EngineStats, iteration: IterationStats, has_stepped: bool) -> None:
        self.time_to_first_token.pending += iteration.time_to_first_token_s
        self.inter_token.pending += iteration.inter_token_s
        if has_stepped:
            self.step.pending.append(engine.step_s)
        self.num_running = max(self.num_running, engine.num_running)
        self.num_waiting = max(self.num_waiting, engine.num_waiting)
        self.kv_usage = max(self.kv_usage, engine.kv_usage)

    def close(self, begin: EngineStats, end: EngineStats) -> None:
        for durations in (self.time_to_first_token, self.inter_token, self.step):
            durations.close()
        self.sample = Sample(
            time=round(self.number * SAMPLE_S),
            num_running=self.num_running,
            num_waiting=self.num_waiting,
            num_used_blocks=round(self.kv_usage * max(end.num_blocks - 1, 0)),
            num_cached_blocks=end.num_cached_blocks,
            num_prompt_tokens=end.num_prompt_tokens - begin.num_prompt_tokens,
            num_generation_tokens=end.num_generation_tokens - begin.num_generation_tokens,
            num_steps=end.num_steps - begin.num_steps,
            num_preemptions=end.num_preemptions - begin.num_preemptions,
            prefix_queries=end.prefix_queries - begin.prefix_queries,
            prefix_hits=end.prefix_hits - begin.prefix_hits,
            time_to_first_token=percentiles([self.time_to_first_token]),
            inter_token=percentiles([self.inter_token]),
            step=percentiles([self.step]),
        )


class LiveStats:
    """A StatLogger. Owns a ring of the last MAX_SAMPLES seconds; idle ones cost nothing."""

    def __init__(
        self, num_blocks: Sequence[int] = (0,), clock: Callable[[], float] = time.time
    ) -> None:
        """`num_blocks`: of each core's KV cache, the dummy row's included, if known before a step
        is."""
        self.clock = clock
        self.totals = Totals(num_blocks)
        self.engine = self.totals.total
        self.engine_before = self.engine  # as of the start of the second being collected
        self.seconds: deque[Second] = deque(maxlen=MAX_SAMPLES)
        self.second = Second(self._number(), self.engine)

    def record(self, engine: EngineStats, iteration: IterationStats, core: int = 0) -> None:
        self._catch_up()
        total = self.totals.add(engine, core)
        self.second.record(total, iteration, total.num_steps > self.engine.num_steps)
        self.engine = total

    def view(self, after: int = 0) -> LiveView:
        """The samples of the seconds after `after`, as far as they are kept."""
        self._catch_up()
        recent = list(islice(reversed(self.seconds), WINDOW_SAMPLES))
        engine = self.engine
        num_blocks = max(engine.num_blocks - 1, 0)
        return LiveView(
            num_blocks=num_blocks,
            num_running=engine.num_running,
            num_waiting=engine.num_waiting,
            num_used_blocks=round(engine.kv_usage * num_blocks),
            num_cached_blocks=engine.num_cached_blocks,
            num_preemptions=engine.num_preemptions,
            summary=_summary(recent),
            fields=Sample.__struct_fields__,
            samples=[s.sample for s in self.seconds if s.sample and s.sample.time > after],
        )

    def _number(self) -> int:
        return int(self.clock() / SAMPLE_S)

    def _catch_up(self) -> None:
        """Close the second being collected, and the idle ones after it, when they are over."""
        number = self._number()
        if number <= self.second.number:  # also when the clock was set back
            return
        self.second.close(self.engine_before, self.engine)
        self.seconds.append(self.second)
        for idle in range(max(self.second.number + 1, number - MAX_SAMPLES), number):
            second = Second(idle, self.engine)
            second.close(self.engine, self.engine)
            self.seconds.append(second)
        self.second, self.engine_before = Second(number, self.engine), self.engine


def _summary(seconds: Sequence[Second]) -> Summary:
    queries = sum(second.sample.prefix_queries for second in seconds if second.sample)
    hits = sum(second.sample.prefix_hits for second in seconds if second.sample)
    return Summary(
        time_to_first_token=percentiles(second.time_to_first_token for second in seconds),
        inter_token=percentiles(second.inter_token for second in seconds),
        step=percentiles(second.step for second in seconds),
        prefix_hit_rate=hits / queries if queries else None,
    )
