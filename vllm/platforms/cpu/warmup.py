"""Warm-up: launches on the dummy slot, so that no request pays for what happens once."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable

from tqdm import tqdm

from vllm.device.launch import Launch
from vllm.device.planner import UnifiedPlanner

logger = logging.getLogger(__name__)

_PROBE_TOKENS = 8
# A larger launch only adds memory that is touched for the first time: little of its own time.
_PATIENCE_S = 0.1


def warm_up(
    run: Callable[[Launch], object],
    agreed: Callable[[float], float],
    *,
    max_rows: int,
    max_tokens: int,
    max_row_tokens: int,
    block_size: int,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Run a decode of one row and a short prefill; the largest of both if they are quick.

    `agreed` makes of this rank's seconds those that all ranks go by.
    """
    started = clock()
    planner = UnifiedPlanner(block_size)
    with tqdm(total=4, desc="Warm-up", disable=not sys.stderr.isatty(), leave=False) as bar:
        run(planner.rehearsal_of([1]))
        bar.update()
        probe = min(_PROBE_TOKENS, max_tokens)
        token_s = agreed(_timed(run, planner.rehearsal(probe, max_row_tokens), clock)) / probe
        bar.update()
        if max_rows > 1 and max_rows * token_s < _PATIENCE_S:
            run(planner.rehearsal_of([1] * max_rows))
        bar.update()
        if max_tokens > probe and max_tokens * token_s < _PATIENCE_S:
            run(planner.rehearsal(max_tokens, max_row_tokens))
        bar.update()
    logger.info("Warm-up took %.2f s", clock() - started)


def _timed(run: Callable[[Launch], object], launch: Launch, clock: Callable[[], float]) -> float:
    started = clock()
    run(launch)
    return clock() - started
