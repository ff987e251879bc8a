"""What prepared shapes cost and what became of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.conftest import LogLines
from vllm.device.device import Device, MemoryInfo
from vllm.device.launch import Launch, Phase, ShapeKey
from vllm.messages.shapes import ShapeUsage
from vllm.messages.step import Int32Array
from vllm.platforms.hpu import shape_tally
from vllm.platforms.hpu.planner import padded_launch
from vllm.platforms.hpu.shape_tally import ShapeTally, end_table, start_table

DECODE = ShapeKey(Phase.DECODE, 4, 1, 16)
PREFILL = ShapeKey(Phase.PREFILL, 2, 32, 2)


class Memory(Device):
    """Has as much free as is set."""

    free_bytes = 1000

    def memory(self) -> MemoryInfo:
        return MemoryInfo(2000, self.free_bytes, 0)

    def upload(self, array: np.ndarray) -> None:
        raise NotImplementedError

    def download(self, tensor: object) -> None:
        raise NotImplementedError

    def synchronize(self) -> None:
        raise NotImplementedError

    def peak_bytes(self, run: object) -> int:
        raise NotImplementedError


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds, to be set."""
    now = [0.0]
    monkeypatch.setattr(shape_tally.time, "monotonic", lambda: now[0])
    return now


def ints(*values: int) -> Int32Array:
    return np.array(values, np.int32)


def launch(key: ShapeKey, starts: Int32Array, counts: Int32Array) -> Launch:
    rows = np.arange(len(starts), dtype=np.int32)
    return padded_launch(key, rows, rows + 1, starts, counts)


def run(tally: ShapeTally, launched: Launch) -> None:
    tally.launch_begins(launched)
    tally.launch_ends(launched)


def rehearse(tally: ShapeTally, key: ShapeKey, captures: bool = False, takes: int = 0) -> None:
    dummy = launch(key, ints(), ints())
    tally.rehearsal_begins(dummy, captures)
    tally._device.free_bytes -= takes
    tally.rehearsal_ends(dummy, captures)


def test_padding_is_counted_in_tokens_and_blocks() -> None:
    tally = ShapeTally(Memory(), 8, is_logging=False)
    run(tally, launch(DECODE, ints(7, 8, 30), ints(1, 1, 1)))
    run(tally, launch(DECODE, ints(7), ints(1)))
    run(tally, launch(PREFILL, ints(9), ints(20)))
    decode, prefill = sorted(tally.shapes(), key=lambda shape: shape.phase)
    assert (decode.name, decode.hits) == ("4x1x16", 2)
    assert (decode.tokens, decode.padding_tokens) == (4, 4)
    assert (decode.used_blocks, decode.padding_blocks) == (1 + 2 + 4 + 1, 32 - 8)
    assert (prefill.tokens, prefill.padding_tokens) == (20, 44)
    assert (prefill.used_blocks, prefill.padding_blocks) == (2, 2)


def test_launches_without_a_cache_have_no_blocks() -> None:
    tally = ShapeTally(Memory(), 8, is_logging=False)
    run(tally, launch(replace(DECODE, kv_blocks=0), ints(7, 8, 30), ints(1, 1, 1)))
    (decode,) = tally.shapes()
    assert (decode.used_blocks, decode.padding_blocks) == (0, 0)


def test_rehearsals_cost_time_and_captures_memory_but_are_no_hits(clock: list[float]) -> None:
    tally = ShapeTally(Memory(), 8, is_logging=False)
    dummy = launch(DECODE, ints(), ints())
    for captures, taken in ((False, 500), (True, 200)):
        tally.rehearsal_begins(dummy, captures)
        clock[0] += 1.5
        tally._device.free_bytes -= taken
        tally.rehearsal_ends(dummy, captures)
    (shape,) = tally.shapes()
    assert (shape.compile_s, shape.graph_bytes, shape.hits, shape.tokens) == (3.0, 200, 0, 0)


def test_a_first_launch_without_rehearsal_is_what_compiles(clock: list[float]) -> None:
    tally = ShapeTally(Memory(), 8, is_logging=False)
    launched = launch(DECODE, ints(7), ints(1))
    for lasts_s in (4.0, 0.1):
        tally.launch_begins(launched)
        clock[0] += lasts_s
        tally.launch_ends(launched)
    (shape,) = tally.shapes()
    assert (shape.compile_s, shape.hits) == (4.0, 2)


def test_tables_are_logged_after_warm_up_and_at_the_end(log_lines: LogLines) -> None:
    tally = ShapeTally(Memory(), 8, is_logging=True)
    rehearse(tally, DECODE, captures=True, takes=100)
    rehearse(tally, PREFILL)
    tally.warm_up_ends()
    run(tally, launch(DECODE, ints(7), ints(1)))
    tally.close()
    start, end = (record.getMessage() for record in log_lines.records)
    assert start.startswith("Prepared shapes:") and "all 2" in start
    assert end.startswith("Launches by shape:") and "75.0%" in end
    assert end.endswith("1 of 2 shapes were never launched")


def test_only_one_rank_logs_and_only_what_there_is(log_lines: LogLines) -> None:
    silent, unused = (ShapeTally(Memory(), 8, is_logging=logs) for logs in (False, True))
    run(silent, launch(DECODE, ints(7), ints(1)))
    for tally in (silent, unused):
        tally.warm_up_ends()
        tally.close()
    assert not log_lines.records


def test_long_tables_show_the_dearest_and_count_the_rest() -> None:
    shapes = [ShapeUsage("decode", i, 1, 8, hits=i, tokens=i, compile_s=i) for i in range(1, 101)]
    for table in (start_table(shapes), end_table(shapes)):
        lines = table.splitlines()
        assert lines[1].split()[:2] == ["decode", "100"]
        assert "60 more" in table and "all 100" in table
        assert len(lines) <= 45
    assert "5050" in end_table(shapes)
