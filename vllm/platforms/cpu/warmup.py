"""Warm-up: launches on the dummy slot, so that no request pays for what happens once."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable

from tqdm import tqdm

from vllm.worker.planner import Launch, UnifiedPlanner

logger = logging.getLogger(__name__)

_PROBE_TOKENS = 64
_PATIENCE_S = 2.0  # a prefill that would take longer teaches nothing that the probe did not


def warm_up(
    run: Callable[[Launch], object],
    *,
    max_rows: int,
    max_tokens: int,
    max_row_tokens: int,
    block_size: int,
) -> None:
    """Run a decode of one row and of all, a short prefill, and a full one if that is quick."""
    started = time.monotonic()
    planner = UnifiedPlanner(block_size)
    with tqdm(total=4, desc="Warm-up", disable=not sys.stderr.isatty(), leave=False) as bar:
        for rows in (1, max_rows):
            run(planner.rehearsal_of([1] * rows))
            bar.update()
        probe = min(_PROBE_TOKENS, max_tokens)
        probe_s = _timed(run, planner.rehearsal(probe, max_row_tokens))
        bar.update()
        if max_tokens > probe and probe_s / probe * max_tokens < _PATIENCE_S:
            run(planner.rehearsal(max_tokens, max_row_tokens))
        bar.update()
    logger.info("Warm-up took %.2f s", time.monotonic() - started)


def _timed(run: Callable[[Launch], object], launch: Launch) -> float:
    started = time.monotonic()
    run(launch)
    return time.monotonic() - started
