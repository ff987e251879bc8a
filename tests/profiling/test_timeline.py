"""The timeline of a process."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import LogLines
from vllm.envs import Environment
from vllm.errors import ConfigError
from vllm.profiling.timeline import FileTimeline, process_timeline


def events(path: Path) -> list[dict[str, Any]]:
    return list(json.loads(path.read_text()))


def test_spans_have_tracks_with_names_and_times_in_microseconds(tmp_path: Path) -> None:
    timeline = FileTimeline(tmp_path / "t.json")
    begin_ns = time.perf_counter_ns()
    timeline.span("rank 0", "step", begin_ns, {"rows": 3})
    timeline.span("core", "schedule", begin_ns)
    timeline.close()
    found = events(tmp_path / "t.json")
    threads = {e["args"]["name"]: e["tid"] for e in found if e["name"] == "thread_name"}
    spans = {e["name"]: e for e in found if e["ph"] == "X"}
    assert set(threads) == {"rank 0", "core"} and len(set(threads.values())) == 2
    assert spans["step"]["tid"] == threads["rank 0"]
    assert spans["step"]["args"] == {"rows": 3}
    assert spans["step"]["ts"] == begin_ns / 1000 and spans["step"]["dur"] >= 0


def test_what_overlaps_is_told_apart_by_its_key(tmp_path: Path) -> None:
    timeline = FileTimeline(tmp_path / "t.json")
    timeline.begin("step", 1)
    timeline.begin("step", 2)
    timeline.end("step", 1)
    timeline.count("requests", {"running": 2, "waiting": 1})
    timeline.close()
    found = [e for e in events(tmp_path / "t.json") if e["ph"] in "beC"]
    assert [(e["ph"], e.get("id")) for e in found] == [("b", 1), ("b", 2), ("e", 1), ("C", None)]
    assert found[-1]["args"] == {"running": 2, "waiting": 1}


def test_threads_record_at_the_same_time_without_loss(tmp_path: Path) -> None:
    timeline = FileTimeline(tmp_path / "t.json")

    def record(track: str) -> None:
        for _ in range(500):
            timeline.span(track, "x", time.perf_counter_ns())
            timeline.flush()

    threads = [threading.Thread(target=record, args=(f"track {i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    timeline.close()
    assert sum(e["ph"] == "X" for e in events(tmp_path / "t.json")) == 2000


def env(**variables: str) -> Environment:
    return Environment({f"VLLM_{name}": value for name, value in variables.items()})


def test_there_is_none_unless_it_is_asked_for(tmp_path: Path) -> None:
    assert not process_timeline(env(TORCH_PROFILER_DIR=str(tmp_path))).is_on
    assert list(tmp_path.iterdir()) == []


def test_all_of_a_process_share_one_file(tmp_path: Path, log_lines: LogLines) -> None:
    asked = env(PROFILER_ENABLED="1", TORCH_PROFILER_DIR=str(tmp_path / "new"))
    timeline = process_timeline(asked)
    assert timeline.is_on and process_timeline(asked) is timeline
    (path,) = (tmp_path / "new").glob("vllm-*.trace.json")
    assert str(path) in log_lines.text


def test_a_directory_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="VLLM_TORCH_PROFILER_DIR"):
        process_timeline(env(PROFILER_ENABLED="1", TORCH_PROFILER_DIR=str(tmp_path / "file")))
