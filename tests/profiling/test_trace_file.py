"""The trace file is whole JSON at any time."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import LogLines
from vllm.profiling.trace_file import TraceFile

EVENT = {"ph": "X", "name": "step", "ts": 1.5, "dur": 2.0, "pid": 1, "tid": 1, "args": {"n": 3}}


def read(path: Path) -> list[object]:
    return list(json.loads(path.read_text()))


def test_the_file_is_whole_after_every_write(tmp_path: Path) -> None:
    file = TraceFile(tmp_path / "t.json")
    assert read(file.path) == []
    for count in range(1, 4):
        file.write([EVENT, EVENT])
        assert read(file.path) == [EVENT] * (2 * count)
    file.write([])
    file.close()
    file.write([EVENT])
    assert read(file.path) == [EVENT] * 6


def test_names_with_quotes_and_other_scripts_are_kept(tmp_path: Path) -> None:
    file = TraceFile(tmp_path / "t.json")
    event = {"name": 'a "b"\n\\ é 語 \x00'}
    file.write([event])
    assert read(file.path) == [event]


def test_an_existing_file_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text("mine")
    with pytest.raises(FileExistsError):
        TraceFile(tmp_path / "t.json")
    assert (tmp_path / "t.json").read_text() == "mine"


def test_a_file_of_the_greatest_size_ends_with_a_warning(
    tmp_path: Path, log_lines: LogLines
) -> None:
    file = TraceFile(tmp_path / "t.json", most_bytes=300)
    for _ in range(10):
        file.write([EVENT])
    assert 0 < len(read(file.path)) < 10
    assert file.path.stat().st_size <= 310
    assert log_lines.text.count("ends here") == 1


def test_a_disk_that_runs_full_leaves_whole_json(tmp_path: Path, log_lines: LogLines) -> None:
    file = TraceFile(tmp_path / "t.json")
    file.write([EVENT])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file.path.stat().st_size + 40, before[1]))
    try:
        file.write([EVENT] * 5)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert read(file.path) == [EVENT]
    assert "ends here" in log_lines.text


KILLED = """
import os, signal, sys, time
from pathlib import Path
from vllm.profiling.timeline import FileTimeline
timeline = FileTimeline(Path(sys.argv[1]))
for _ in range(1000):
    timeline.span("a", "b", time.perf_counter_ns())
timeline.flush()
timeline.span("a", "lost", time.perf_counter_ns())
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_process_that_is_killed_leaves_whole_json(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(read(path)) >= 1000
