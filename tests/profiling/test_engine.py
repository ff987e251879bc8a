"""Profiles, timelines and logs of steps of a whole engine."""

from __future__ import annotations

import gzip
import json
import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import LogLines
from tests.entrypoints.openai.real_server import serving
from tests.limits import HANG_S, wait_until
from vllm import LLM, SamplingParams
from vllm.errors import NotAvailable

pytestmark = pytest.mark.engine
PARAMS = SamplingParams(max_tokens=4, temperature=0)


@pytest.fixture(autouse=True)
def _little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "0.1")


def ops(path: Path) -> set[str]:
    trace = json.loads(gzip.decompress(path.read_bytes()))
    return {event["name"] for event in trace["traceEvents"]}


def spans(path: Path) -> Counter[str]:
    return Counter(event["name"] for event in json.loads(path.read_text()) if event["ph"] == "X")


@pytest.mark.parametrize(("depth", "backend"), [(1, "uni"), (2, "uni"), (2, "mp")], ids=str)
def test_a_profile_has_the_ops_of_the_model(
    depth: int, backend: str, tiny_story: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_TORCH_PROFILER_DIR", str(tmp_path))
    monkeypatch.setenv("VLLM_TORCH_PROFILER_WITH_STACK", "0")
    llm = LLM(str(tiny_story), pipeline_depth=depth, distributed_executor_backend=backend)
    llm.start_profile()
    llm.generate("Once upon a time", PARAMS, use_tqdm=False)
    llm.stop_profile()
    (path,) = tmp_path.iterdir()
    assert path.name.startswith("vllm-rank0-")
    assert ops(path) & {"vllm::packed_linear", "aten::linear", "aten::mm", "aten::addmm"}
    llm.start_profile()
    llm.llm_engine.shutdown()
    assert len(list(tmp_path.glob("vllm-rank0-*"))) == 2, "the end keeps what is recorded"


def test_profiling_is_refused_where_it_is_off(tiny_story: Path) -> None:
    llm = LLM(str(tiny_story))
    with pytest.raises(NotAvailable, match="VLLM_TORCH_PROFILER_DIR"):
        llm.start_profile()
    with pytest.raises(NotAvailable, match="VLLM_TORCH_PROFILER_DIR"):
        llm.stop_profile()
    assert llm.generate("Once", PARAMS, use_tqdm=False)


def test_a_timeline_has_every_step_of_the_core_and_of_its_rank(
    tiny_story: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_PROFILER_ENABLED", "1")
    monkeypatch.setenv("VLLM_TORCH_PROFILER_DIR", str(tmp_path))
    llm = LLM(str(tiny_story), pipeline_depth=2)
    llm.generate(["Once upon a time", "The cat"], PARAMS, use_tqdm=False)
    llm.llm_engine.shutdown()
    (path,) = tmp_path.iterdir()
    found = json.loads(path.read_text())
    counts = spans(path)
    num_steps = counts["step"]
    assert num_steps >= 4
    for name in ("schedule", "wait for tokens", "commit"):
        assert counts[name] == num_steps, counts
    assert counts["sampling"] == num_steps
    flights = Counter(event["ph"] for event in found if event.get("cat") == "step in flight")
    assert flights == {"b": num_steps, "e": num_steps}
    launches = [event for event in found if "query_len" in event.get("args", {})]
    real = [event["args"] for event in launches if not event["name"].startswith("warm-up")]
    assert sum(args["real tokens"] for args in real) > 0
    assert all(args["padding tokens"] == 0 for args in real)
    counters = {event["name"] for event in found if event["ph"] == "C"}
    assert counters == {"requests", "KV cache", "tokens per second"}


def test_a_timeline_tells_what_a_stage_waits_for(
    tiny_story: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_PROFILER_ENABLED", "1")
    monkeypatch.setenv("VLLM_TORCH_PROFILER_DIR", str(tmp_path))
    llm = LLM(str(tiny_story), pipeline_parallel_size=2)
    llm.generate(["Once upon a time", "The cat"], PARAMS, use_tqdm=False)
    llm.llm_engine.shutdown()
    counts = [spans(path) for path in tmp_path.iterdir()]
    core, first, last = sorted(counts, key=lambda some: (some["step"], some["receive"]))
    assert core["schedule"] == first["step"] == last["step"] == last["receive"] >= 4
    assert not first["receive"] and not first["sampling"] and last["sampling"]


def test_topics_of_the_step_log_say_what_a_step_was(
    tiny_story: Path, monkeypatch: pytest.MonkeyPatch, log_lines: LogLines
) -> None:
    monkeypatch.setenv("VLLM_DEBUG", "steps,fwd")
    LLM(str(tiny_story)).generate("Once upon a time", PARAMS, use_tqdm=False)
    steps = [line for line in log_lines.text.splitlines() if line.startswith("Step ")]
    assert sum("launches, queued in" in line for line in steps) == 4
    assert sum("decode[1x1" in line and "1 of 1 rows" in line for line in steps) == 3
    log_lines.records.clear()
    monkeypatch.delenv("VLLM_DEBUG")
    LLM(str(tiny_story)).generate("Once upon a time", PARAMS, use_tqdm=False)
    assert "Step " not in log_lines.text


def settled(directory: Path, num_steps: int) -> Path:
    """The timeline with that many steps: it is written twice a second."""

    def found() -> list[Path]:
        paths = directory.glob("vllm-*[0-9].trace.json")
        return [path for path in paths if spans(path)["step"] >= num_steps]

    wait_until(found, "a timeline with these steps")
    return found()[0]


def test_a_server_records_over_http_and_its_timeline_survives_a_kill(tmp_path: Path) -> None:
    env = {"VLLM_TORCH_PROFILER_DIR": str(tmp_path), "VLLM_PROFILER_ENABLED": "1"}
    env["VLLM_TORCH_PROFILER_WITH_STACK"] = "0"
    body: dict[str, Any] = {"prompt": "Once", "max_tokens": 5, "ignore_eos": True}
    with serving(log=tmp_path / "log", env=env) as server, server.client() as client:
        assert client.post("/stop_profile").status_code == 400
        assert client.post("/start_profile").status_code == 200
        assert client.post("/v1/completions", json=body).status_code == 200
        refused = client.post("/start_profile")
        assert refused.status_code == 400 and "already" in refused.json()["error"]["message"]
        assert client.post("/stop_profile").status_code == 200
        assert len(list(tmp_path.glob("vllm-rank0-*.pt.trace.json.gz"))) == 1
        path = settled(tmp_path, 5)
        os.kill(server.engine_pid(), signal.SIGKILL)
        assert server.process.wait(HANG_S) == 1
    assert spans(path)["step"] >= 5
