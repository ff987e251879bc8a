"""A core that hangs is told from one that is busy."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vllm.engine.heartbeat import ProcessPulse, make_file

CORE = """
import sys, time
from vllm.engine import heartbeat

heartbeat.BEAT_S = 0.01
"""
IDLE = "heartbeat.start_heart(sys.argv[1])\nprint(flush=True)\ntime.sleep(1000)\n"
BUSY = "print(flush=True)\nwhile True: pass\n"  # as if it held Python's lock: no beat
LIMIT_S = 0.5


@contextmanager
def running(program: str, directory: Path) -> Iterator[ProcessPulse]:
    path = str(directory / "heartbeat")
    make_file(path)
    process = subprocess.Popen([sys.executable, "-c", CORE + program, path], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield ProcessPulse(path, process.pid, LIMIT_S)
    finally:
        process.kill()
        process.communicate()


async def test_a_stopped_process_is_noticed_and_so_is_its_going_on(tmp_path: Path) -> None:
    with running(IDLE, tmp_path) as pulse:
        assert not await pulse.has_stopped()
        os.kill(pulse.pid, signal.SIGSTOP)
        while not await pulse.has_stopped():
            pass
        assert pulse.silence_s() > LIMIT_S
        os.kill(pulse.pid, signal.SIGCONT)
        while await pulse.has_stopped():
            pass


async def test_one_that_computes_without_a_beat_lives(tmp_path: Path) -> None:
    with running(BUSY, tmp_path) as pulse:
        while pulse.silence_s() <= LIMIT_S:
            await asyncio.sleep(0.05)
        assert not await pulse.has_stopped()
        os.kill(pulse.pid, signal.SIGSTOP)
        while not await pulse.has_stopped():
            pass


async def test_one_that_went_on_before_anybody_looked_lives(tmp_path: Path) -> None:
    with running(IDLE, tmp_path) as pulse:
        os.kill(pulse.pid, signal.SIGSTOP)
        while pulse.silence_s() <= LIMIT_S:
            await asyncio.sleep(0.05)
        os.kill(pulse.pid, signal.SIGCONT)
        assert not await pulse.has_stopped()
