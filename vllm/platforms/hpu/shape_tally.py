"""What every prepared shape cost and what became of it: counts, and a table of them in the log."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Final

from vllm.device.device import Device
from vllm.device.launch import Launch, Phase, ShapeKey
from vllm.device.observer import StepObserver
from vllm.logger import init_logger
from vllm.messages.shapes import ShapeUsage

logger = init_logger(__name__)

_MOST_ROWS: Final = 40  # of a table in the log
_MIB: Final = 1 << 20


class ShapeTally(StepObserver):
    """Counts launches by shape. Owns the counts of its rank; rank 0 logs them."""

    def __init__(self, device: Device, block_size: int, is_logging: bool) -> None:
        self._device = device
        self._block_size = block_size
        self._is_logging = is_logging
        self._usage: dict[ShapeKey, ShapeUsage] = {}
        self._rehearsed: set[ShapeKey] = set()
        self._begun_s = 0.0
        self._free_bytes = 0

    def launch_begins(self, launch: Launch) -> None:
        if launch.key not in self._rehearsed:
            self._begun_s = time.monotonic()

    def launch_ends(self, launch: Launch) -> None:
        usage = self._usage_of(launch.key)
        if launch.key not in self._rehearsed:
            usage.compile_s += time.monotonic() - self._begun_s
            self._rehearsed.add(launch.key)
        num_real = len(launch.plan_rows_np)
        is_decode = launch.key.phase is Phase.DECODE
        tokens = num_real if is_decode else int(launch.counts_np.sum())
        blocks, all_blocks = self._blocks(launch, num_real)
        usage.hits += 1
        usage.tokens += tokens
        usage.padding_tokens += launch.num_tokens - tokens
        usage.used_blocks += blocks
        usage.padding_blocks += all_blocks - blocks

    def rehearsal_begins(self, launch: Launch, captures: bool) -> None:
        if captures:
            self._free_bytes = self._device.memory().free_bytes
        self._begun_s = time.monotonic()

    def rehearsal_ends(self, launch: Launch, captures: bool) -> None:
        usage = self._usage_of(launch.key)
        usage.compile_s += time.monotonic() - self._begun_s
        self._rehearsed.add(launch.key)
        if captures:
            usage.graph_bytes += max(0, self._free_bytes - self._device.memory().free_bytes)

    def warm_up_ends(self) -> None:
        if self._is_logging and self._usage:
            logger.info("Prepared shapes:\n%s", start_table(self.shapes()))

    def shapes(self) -> list[ShapeUsage]:
        return [usage for _, usage in sorted(self._usage.items())]

    def close(self) -> None:
        if self._is_logging and any(usage.hits for usage in self._usage.values()):
            logger.info("Launches by shape:\n%s", end_table(self.shapes()))

    def _usage_of(self, key: ShapeKey) -> ShapeUsage:
        usage = self._usage.get(key)
        if usage is None:
            usage = ShapeUsage(key.phase.name.lower(), key.rows, key.query_len, key.kv_blocks)
            self._usage[key] = usage
        return usage

    def _blocks(self, launch: Launch, num_real: int) -> tuple[int, int]:
        """Blocks that requests need of those that the launch looks at, and the latter."""
        if not launch.key.kv_blocks:  # prompts without context, or no cache
            return 0, 0
        starts, size = launch.starts_np[:num_real], self._block_size
        if launch.key.phase is Phase.DECODE:
            return int((starts // size + 1).sum()), launch.key.kv_blocks
        return int((-(-starts // size)).sum()), launch.key.kv_blocks * launch.num_rows


def start_table(shapes: Sequence[ShapeUsage]) -> str:
    """What preparing took, the dearest shapes first."""
    ordered = sorted(shapes, key=lambda shape: -shape.compile_s)
    head = ("phase", "rows", "tokens", "blocks", "seconds", "graph MiB")
    rows = [
        (*_names(s), f"{s.compile_s:.2f}", f"{s.graph_bytes / _MIB:.1f}")
        for s in ordered[:_MOST_ROWS]
    ]
    total = (
        *_total_names(len(shapes)),
        f"{sum(s.compile_s for s in shapes):.2f}",
        f"{sum(s.graph_bytes for s in shapes) / _MIB:.1f}",
    )
    return _aligned([head, *rows, *_rest(len(ordered), len(head)), total])


def end_table(shapes: Iterable[ShapeUsage]) -> str:
    """What was launched, the most frequent shapes first, and how many shapes never were."""
    every = list(shapes)
    ordered = sorted((s for s in every if s.hits), key=lambda shape: -shape.hits)
    head = ("phase", "rows", "tokens", "blocks", "hits", "padding tokens", "padding blocks")
    rows = [
        (*_names(s), str(s.hits), _token_share([s]), _block_share([s]))
        for s in ordered[:_MOST_ROWS]
    ]
    hits = sum(s.hits for s in ordered)
    total = (*_total_names(len(ordered)), str(hits), _token_share(ordered), _block_share(ordered))
    table = _aligned([head, *rows, *_rest(len(ordered), len(head)), total])
    return f"{table}\n{len(every) - len(ordered)} of {len(every)} shapes were never launched"


def _names(shape: ShapeUsage) -> tuple[str, str, str, str]:
    return shape.phase, str(shape.rows), str(shape.query_len), str(shape.blocks)


def _total_names(num_shapes: int) -> tuple[str, str, str, str]:
    return f"all {num_shapes}", "", "", ""


def _rest(num_rows: int, num_columns: int) -> list[tuple[str, ...]]:
    left = num_rows - _MOST_ROWS
    return [(f"{left} more", *[""] * (num_columns - 1))] if left > 0 else []


def _token_share(shapes: Sequence[ShapeUsage]) -> str:
    return _percent(sum(s.padding_tokens for s in shapes), sum(s.tokens for s in shapes))


def _block_share(shapes: Sequence[ShapeUsage]) -> str:
    return _percent(sum(s.padding_blocks for s in shapes), sum(s.used_blocks for s in shapes))


def _percent(padding: int, used: int) -> str:
    whole = padding + used
    return f"{100 * padding / whole:.1f}%" if whole else "-"


def _aligned(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
