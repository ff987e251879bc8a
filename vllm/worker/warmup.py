"""Warm-up: launches on the dummy slot, so that no request pays for what happens once."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable

import numpy as np
from tqdm import tqdm

from vllm.core.plan import Int32Array
from vllm.worker.planner import Launch, make_launch
from vllm.worker.slots import DUMMY_SLOT

logger = logging.getLogger(__name__)

_PROBE_TOKENS = 64
_PATIENCE_S = 2.0  # a prefill that would take longer teaches nothing that the probe did not


def dummy_launch(num_tokens: int, max_row_tokens: int, block_size: int) -> Launch:
    """A launch of `num_tokens` tokens in rows of the dummy slot, which no request reads."""
    full, rest = divmod(num_tokens, max_row_tokens)
    counts = np.array([max_row_tokens] * full + ([rest] if rest else []), np.int32)
    return _rows(counts, block_size)


def _rows(counts: Int32Array, block_size: int) -> Launch:
    slots = np.full(len(counts), DUMMY_SLOT, np.int32)
    return make_launch(slots, np.zeros(len(counts), np.int32), counts, block_size)


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
    with tqdm(total=4, desc="Warm-up", disable=not sys.stderr.isatty(), leave=False) as bar:
        for rows in (1, max_rows):
            run(_rows(np.ones(rows, np.int32), block_size))
            bar.update()
        probe = min(_PROBE_TOKENS, max_tokens)
        probe_s = _timed(run, dummy_launch(probe, max_row_tokens, block_size))
        bar.update()
        if max_tokens > probe and probe_s / probe * max_tokens < _PATIENCE_S:
            run(dummy_launch(max_tokens, max_row_tokens, block_size))
        bar.update()
    logger.info("Warm-up took %.2f s", time.monotonic() - started)


def _timed(run: Callable[[Launch], object], launch: Launch) -> float:
    started = time.monotonic()
    run(launch)
    return time.monotonic() - started
