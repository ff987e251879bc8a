from __future__ import annotations

import os
import threading
import time

import numpy as np

from tests.limits import wait_until
from vllm.device.launch import Launch, make_launch
from vllm.executor.pulse import RECORD_BYTES, Pulse, PulseObserver, read
from vllm.executor.rank_state import Activity, RankState


def launch(num_rows: int = 4) -> Launch:
    rows = np.arange(num_rows, dtype=np.int32)
    return make_launch(rows + 1, rows, np.ones(num_rows, np.int32), block_size=16)


def records(num_ranks: int = 3) -> bytearray:
    return bytearray(num_ranks * RECORD_BYTES)


def state_of(memory: bytearray) -> RankState:
    return read(memory, 0, 0)


def test_a_record_says_what_was_written_and_leaves_its_neighbours_alone() -> None:
    memory = records()
    pulse = Pulse(memory, 1)
    pulse.ask(lambda: "sum 1234: waits for rank 1")
    before_s = time.monotonic()
    pulse.beat()
    pulse.began(Activity.STEP, 12)
    pulse.launched(launch().key)
    pulse.waiting_for(11)()
    state = read(memory, 5, 1)
    assert (state.rank, state.pid, state.step, state.answering) == (5, os.getpid(), 12, 11)
    assert before_s <= state.beat_s <= state.since_s <= state.answering_since_s
    assert state.doing() == "in step 12 (decode[4x1, 4 blocks])"
    assert state.described(state.since_s + 7).startswith(f"{state.doing()} for 7 s, waiting for")
    said = "waiting in a collective (sum 1234: waits for rank 1) for"
    assert said in state.described(before_s)
    pulse.answered()
    pulse.began(Activity.IDLE)
    assert read(memory, 5, 1).described(time.monotonic()).startswith("idle for 0 s, waiting in a")
    assert not any(memory[:RECORD_BYTES]) and not any(memory[2 * RECORD_BYTES :])


def test_a_record_that_nobody_has_written_is_of_a_rank_that_starts() -> None:
    state = state_of(records())
    assert (state.beat_s, state.pid, state.name) == (0, 0, "rank 0")
    assert state.doing() == "starting" and not state.is_compiling


def test_a_wait_in_a_collective_is_as_old_as_its_text() -> None:
    memory = records()
    pulse = Pulse(memory)
    waits = "sum 1"
    pulse.ask(lambda: waits)
    pulse.beat()
    first_s = state_of(memory).collective_since_s
    pulse.beat()
    state = state_of(memory)
    assert state.collective_since_s == first_s < state.beat_s
    waits = "ü" * 400  # longer than its field, which ends within a letter
    pulse.beat()
    state = state_of(memory)
    assert state.collective_since_s > first_s and state.collective.startswith("ü" * 100)
    waits = ""
    pulse.beat()
    assert state_of(memory).collective == ""


def test_only_steps_with_launches_that_nothing_has_prepared_compile() -> None:
    memory = records()
    pulse = Pulse(memory)
    observer = PulseObserver(pulse, prepares_shapes=True)
    observer.rehearsal_begins(launch(1), captures=False)
    observer.rehearsal_ends(launch(1), captures=False)
    observer.rehearsal_begins(launch(2), captures=False)  # fails: it has no end

    def is_compiling_after(*num_rows: int) -> bool:
        pulse.began(Activity.STEP, 3)
        for rows in num_rows:
            observer.launch_begins(launch(rows))
            observer.launch_ends(launch(rows))
        return state_of(memory).is_compiling

    assert not is_compiling_after(1)
    assert is_compiling_after(1, 2, 1)
    assert not is_compiling_after(1, 2)
    assert is_compiling_after(3)
    waits = pulse.waiting_for(3)
    pulse.began(Activity.IDLE)
    assert not state_of(memory).is_compiling
    waits()
    assert state_of(memory).is_compiling, "what it compiled, the device may still wait for"
    pulse.answered()
    assert not state_of(memory).is_compiling
    observer = PulseObserver(pulse, prepares_shapes=False)
    assert not is_compiling_after(9)


def test_the_beat_goes_on_when_nobody_can_say_what_the_rank_waits_in() -> None:
    memory = records()
    pulse = Pulse(memory)
    asked = threading.Event()

    def where() -> str:
        asked.set()
        raise RuntimeError("the group is gone")

    pulse.start()
    pulse.ask(where)
    try:
        wait_until(asked.is_set, "the question")
        beat_s = state_of(memory).beat_s
        wait_until(lambda: state_of(memory).beat_s > beat_s, "the next beat")
    finally:
        pulse.stop()


def test_writing_costs_a_step_a_few_microseconds() -> None:
    """Twenty, on a machine that also runs other things, and with the processor's caches cold."""
    pulse = Pulse(records())
    observer = PulseObserver(pulse, prepares_shapes=True)
    a_launch = launch()
    num_steps = 20_000
    before_s = time.thread_time()
    for step in range(num_steps):
        pulse.began(Activity.STEP, step)
        observer.launch_begins(a_launch)
        observer.launch_ends(a_launch)
        pulse.waiting_for(step)()
        pulse.answered()
        pulse.began(Activity.IDLE)
    cost_s = (time.thread_time() - before_s) / num_steps
    print(f"{cost_s * 1e6:.2f} us")
    assert cost_s < 20e-6
