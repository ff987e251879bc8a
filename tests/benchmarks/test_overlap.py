"""benchmarks/overlap.py on a timeline made by hand."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "overlap.py"


def event(name: str, begin: float, end: float, step: int, tokens: int = 2) -> dict[str, Any]:
    args = {"step": step, "rows": 2, "tokens": tokens}
    return {"ph": "X", "name": name, "ts": begin, "dur": end - begin, "args": args}


def run(directory: Path, *processes: list[dict[str, Any]]) -> subprocess.CompletedProcess[str]:
    for i, events in enumerate(processes):
        meta = {"ph": "M", "name": "process_name"}
        (directory / f"vllm-{i}.trace.json").write_text(json.dumps([meta, *events]))
    command = [sys.executable, str(SCRIPT), str(directory)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_host_time_within_steps_is_hidden(tmp_path):
    rank = [event("step", 100 * s, 100 * s + 90, s) for s in range(1, 5)]
    core = [event("schedule", 10, 20, 1, tokens=30)]  # a prompt: not counted
    # Planned while the step before computes; the last quarter of each commit is not covered.
    core += [event("schedule", 100 * s - 50, 100 * s - 40, s) for s in range(2, 5)]
    core += [event("commit", 100 * s + 75, 100 * s + 95, s) for s in range(1, 5)]
    done = run(tmp_path, core, rank)
    assert json.loads(done.stdout) == {
        "steps": 2,  # 3 and 4: the one before 2 computes a prompt
        "planned_early": 2,
        "hidden": round((2 * 10 + 2 * 15) / (2 * 30), 3),
        "host_us": 30,
        "idle_us": 10,
    }


def test_nothing_is_hidden_without_overlap(tmp_path):
    events = []
    for s in range(1, 4):
        events.append(event("schedule", 100 * s, 100 * s + 10, s))
        events.append(event("step", 100 * s + 10, 100 * s + 80, s))
        events.append(event("commit", 100 * s + 80, 100 * s + 90, s))
    figures = json.loads(run(tmp_path, events).stdout)
    assert (figures["planned_early"], figures["hidden"], figures["idle_us"]) == (0, 0, 30)


def test_a_directory_without_steps_is_an_error(tmp_path):
    done = run(tmp_path, [])
    assert done.returncode == 1
    assert "no two neighbouring steps" in done.stderr
