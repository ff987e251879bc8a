"""A rank's record in memory that the executor reads: signs of life, and what the rank does.

The record has three writers, each with fields of its own: the beat's thread, the thread that serves
requests, and the one that waits for values. Nothing is locked: a reader may see parts of different
moments, which costs it a look. A write of the serving thread takes less than a microsecond.
"""

from __future__ import annotations

import mmap
import os
import struct
import threading
import time
from collections.abc import Callable
from typing import Final

from vllm.device.launch import Launch, Phase, ShapeKey
from vllm.device.observer import StepObserver
from vllm.executor.rank_state import Activity, RankState
from vllm.logger import init_logger

logger = init_logger(__name__)

BEAT_S: Final = 0.25
RECORD_BYTES: Final = 512
_MOST_TEXT: Final = 240  # bytes
# Native order and alignment: every number is written as a whole.
_LIFE: Final = struct.Struct(f"@ddqq{_MOST_TEXT}s")  # beat, collective since, pid, length, text
_DOING: Final = struct.Struct("@qqdqqqq")  # activity, step, since, launch
_LAUNCH: Final = struct.Struct("@qqqq")  # phase + 1 (0: none), rows, query_len, kv_blocks
_ANSWER: Final = struct.Struct("@qqd")  # step + 1 (0: none), whether it was compiled, since
_DOING_AT: Final = 320
_LAUNCH_AT: Final = _DOING_AT + _DOING.size - _LAUNCH.size
_ANSWER_AT: Final = 448
assert _LIFE.size <= _DOING_AT and _DOING_AT + _DOING.size <= _ANSWER_AT, "fields overlap"
assert _ANSWER_AT + _ANSWER.size <= RECORD_BYTES, "fields do not fit"

Memory = mmap.mmap | bytearray


class Pulse:
    """The writing side: one rank's record, at `index` of `memory`."""

    def __init__(self, memory: Memory, index: int = 0) -> None:
        self._memory = memory
        self._at = index * RECORD_BYTES
        self._where: Callable[[], str] = str
        self._collective, self._collective_since_s = "", 0.0
        self._ends = threading.Event()
        self._is_compiling = False

    def prepare(self) -> None:
        """By the executor, before the rank is there: it is starting from now on."""
        self.began(Activity.STARTING)

    # -- the beat ---------------------------------------------------------------------------------

    def start(self) -> None:
        """Give signs of life from now on, from a thread."""
        self.beat()
        threading.Thread(target=self._beat_on, name="pulse", daemon=True).start()

    def stop(self) -> None:
        self._ends.set()

    def ask(self, where: Callable[[], str]) -> None:
        """Tell what `where` says: the collective that the rank waits in."""
        self._where = where

    def beat(self) -> None:
        now_s = time.monotonic()
        collective = self._where()
        if collective != self._collective:
            self._collective, self._collective_since_s = collective, now_s
        text = collective.encode()[:_MOST_TEXT]
        _LIFE.pack_into(
            self._memory, self._at, now_s, self._collective_since_s, os.getpid(), len(text), text
        )

    def _beat_on(self) -> None:
        while not self._ends.wait(BEAT_S):
            try:
                self.beat()
            except Exception:
                # What it waits in is for people; that it lives is not.
                logger.exception("The collective that this rank waits in cannot be told")
                self._where = str

    # -- the thread that serves -------------------------------------------------------------------

    def began(self, activity: Activity, step: int = 0) -> None:
        self._is_compiling = False
        at = self._at + _DOING_AT
        _DOING.pack_into(self._memory, at, activity, step, time.monotonic(), 0, 0, 0, 0)

    def launched(self, key: ShapeKey) -> None:
        at = self._at + _LAUNCH_AT
        _LAUNCH.pack_into(self._memory, at, key.phase + 1, key.rows, key.query_len, key.kv_blocks)

    def compiles(self) -> None:
        """The step that was begun has to compile something."""
        self._is_compiling = True
        struct.pack_into("@q", self._memory, self._at + _DOING_AT, Activity.COMPILING)

    def waiting_for(self, step: int) -> Callable[[], None]:
        """Says, when called by whoever waits for the step's values, that it does so."""
        is_compiled = self._is_compiling
        return lambda: self._write_answer(step + 1, is_compiled)

    # -- the thread that answers ------------------------------------------------------------------

    def answered(self) -> None:
        self._write_answer(0, False)

    def _write_answer(self, step: int, is_compiled: bool) -> None:
        at = self._at + _ANSWER_AT
        _ANSWER.pack_into(self._memory, at, step, is_compiled, time.monotonic())


def read(memory: Memory, rank: int, index: int) -> RankState:
    at = index * RECORD_BYTES
    beat_s, collective_since_s, pid, length, text = _LIFE.unpack_from(memory, at)
    activity, step, since_s, phase, *shape = _DOING.unpack_from(memory, at + _DOING_AT)
    answering, is_compiled, answering_since_s = _ANSWER.unpack_from(memory, at + _ANSWER_AT)
    return RankState(
        rank=rank,
        pid=pid,
        beat_s=beat_s,
        activity=Activity(activity),
        step=step,
        since_s=since_s,
        shape=ShapeKey(Phase(phase - 1), *shape) if phase else None,
        answering=answering - 1 if answering else None,
        answering_since_s=answering_since_s,
        is_answer_compiled=bool(is_compiled),
        collective=text[:length].decode(errors="replace"),
        collective_since_s=collective_since_s,
    )


class PulseObserver(StepObserver):
    """Writes launches into the record, and notices those whose shape nothing has prepared."""

    def __init__(self, pulse: Pulse, prepares_shapes: bool) -> None:
        """`prepares_shapes`: the device compiles for a shape when it first comes."""
        self._pulse = pulse
        self._prepares_shapes = prepares_shapes
        self._prepared: set[ShapeKey] = set()

    def launch_begins(self, launch: Launch) -> None:
        self._pulse.launched(launch.key)
        if self._prepares_shapes and launch.key not in self._prepared:
            self._pulse.compiles()

    def launch_ends(self, launch: Launch) -> None:
        if self._prepares_shapes:
            self._prepared.add(launch.key)

    def rehearsal_begins(self, launch: Launch, captures: bool) -> None:
        self._pulse.launched(launch.key)

    def rehearsal_ends(self, launch: Launch, captures: bool) -> None:
        self._prepared.add(launch.key)
