from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import SpawnProcess
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.limits import HANG_S
from vllm.executor.shm_queue import (
    BroadcastReader,
    BroadcastWriter,
    QueueClosed,
    broadcast_queue,
)

SHORT_S = 0.05  # for what does not come
SPAWN = multiprocessing.get_context("spawn")


def messages(seed: int, count: int, largest: int) -> Iterator[bytes]:
    random_ = random.Random(seed)
    for _ in range(count):
        yield random_.randbytes(int(largest ** random_.random()))


def digest_all(reader: BroadcastReader, answers: Any, pause_s: float) -> None:
    total = hashlib.sha256()
    while message := reader.get():
        total.update(message)
        time.sleep(pause_s)
    answers.put(total.hexdigest())


def echo(reader: BroadcastReader, writer: BroadcastWriter) -> None:
    while message := reader.get():
        writer.put(message)


def read_for_ever(reader: BroadcastReader) -> None:
    while True:
        reader.get()


def write_and_wait(writer: BroadcastWriter, message: bytes) -> None:
    writer.put(message)
    time.sleep(HANG_S)


@contextmanager
def spawned(target: Any, *args: Any) -> Iterator[SpawnProcess]:
    """The process; closes this side's copies of the queue ends it was given."""
    process = SPAWN.Process(target=target, args=args, daemon=True)
    process.start()
    for arg in args:
        if isinstance(arg, BroadcastReader | BroadcastWriter):
            arg.close()
    try:
        yield process
    finally:
        process.kill()
        process.join()


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 700), min_size=1, max_size=40),
    capacity=st.integers(1, 300),
    num_readers=st.integers(1, 3),
)
def test_every_reader_gets_every_message_in_order(
    sizes: list[int], capacity: int, num_readers: int
) -> None:
    writer, readers = broadcast_queue(num_readers, capacity)
    sent = [os.urandom(size) for size in sizes]
    received: list[list[bytes | None]] = [[] for _ in readers]

    def drain(reader: BroadcastReader, into: list[bytes | None]) -> None:
        into.extend(reader.get() for _ in sent)

    threads = [
        threading.Thread(target=drain, args=(reader, into))
        for reader, into in zip(readers, received, strict=True)
    ]
    for thread in threads:
        thread.start()
    for message in sent:
        writer.put(message)
    for thread in threads:
        thread.join(HANG_S)
    assert received == [sent] * num_readers
    for end in (writer, *readers):
        end.close()


@pytest.mark.parametrize("pauses_s", [(0.0,), (0.0, 0.003)], ids=["fast", "one-slow-reader"])
def test_messages_larger_than_the_ring_reach_other_processes_intact(
    pauses_s: tuple[float, ...],
) -> None:
    writer, readers = broadcast_queue(len(pauses_s), 64 << 10)
    answers = SPAWN.Queue()
    processes = []
    for reader, pause_s in zip(readers, pauses_s, strict=True):
        process = SPAWN.Process(target=digest_all, args=(reader, answers, pause_s), daemon=True)
        process.start()
        reader.close()
        processes.append(process)
    total = hashlib.sha256()
    for message in messages(seed=1, count=400, largest=1 << 20):
        writer.put(message)
        total.update(message)
    writer.put(b"")
    assert {answers.get(timeout=HANG_S) for _ in processes} == {total.hexdigest()}
    for process in processes:
        process.join(HANG_S)
        assert process.exitcode == 0


def test_many_small_messages_do_not_deadlock_when_nobody_reads_for_a_while() -> None:
    writer, (reader,) = broadcast_queue(1)
    count = 20_000
    thread = threading.Thread(target=lambda: [writer.put(b"x" * 10) for _ in range(count)])
    thread.start()
    time.sleep(0.2)
    assert thread.is_alive(), "the writer should wait for the reader"
    for _ in range(count):
        assert reader.get(HANG_S) == b"x" * 10
    thread.join(HANG_S)
    assert not thread.is_alive()


def test_get_returns_none_when_no_message_comes_in_time() -> None:
    _writer, (reader,) = broadcast_queue(1)
    started = time.monotonic()
    assert reader.get(SHORT_S) is None
    assert time.monotonic() - started > SHORT_S / 2


def test_a_waiting_writer_notices_at_once_that_a_reader_was_killed() -> None:
    writer, (reader,) = broadcast_queue(1, 1024)
    with spawned(hold, reader) as process:
        killer = threading.Timer(1.5, lambda: os.kill(process.pid or 0, signal.SIGKILL))
        killer.start()
        with pytest.raises(QueueClosed) as caught:
            while True:
                writer.put(bytes(700))
        process.join(HANG_S)
        assert caught.value.reader == 0 and process.exitcode == -signal.SIGKILL


def hold(reader: BroadcastReader) -> None:
    time.sleep(HANG_S)


def test_a_reader_gets_what_a_killed_writer_sent_and_then_its_end() -> None:
    writer, (reader,) = broadcast_queue(1)
    with spawned(write_and_wait, writer, b"last words") as process:
        assert reader.get(HANG_S) == b"last words"
        os.kill(process.pid or 0, signal.SIGKILL)
        with pytest.raises(QueueClosed, match="writer"):
            reader.get(HANG_S)


def test_a_reader_notices_a_closed_writer_after_the_messages() -> None:
    writer, (reader,) = broadcast_queue(1)
    writer.put(b"one")
    writer.close()
    assert reader.get() == b"one"
    with pytest.raises(QueueClosed):
        reader.get()


def test_closing_returns_every_file_descriptor() -> None:
    before = set(os.listdir("/proc/self/fd"))
    writer, readers = broadcast_queue(3)
    for end in (writer, *readers):
        end.close()
        end.close()
    # Other threads of the test run may close theirs meanwhile.
    assert set(os.listdir("/proc/self/fd")) <= before
