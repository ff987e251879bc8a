"""What an engine on the emulated device says of its steps, its shapes and its compilations."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import STORY
from tests.hpu_emulator.conftest import Emulated
from tools.hpu_emulator.install import install

pytestmark = pytest.mark.engine

PROGRAM = f"""
import json
from vllm import LLM, SamplingParams

llm = LLM(
    {str(STORY)!r}, device="hpu", dtype="float32", max_num_seqs=4, max_model_len=128,
    block_size=16, num_gpu_blocks_override=64, enforce_eager=True, disable_log_stats=False,
)
params = SamplingParams(max_tokens=4, temperature=0, ignore_eos=True)
llm.generate(["Once upon", "The cat"], params, use_tqdm=False)
llm.start_profile()
llm.generate(["Then he", "A dog"], params, use_tqdm=False)
llm.stop_profile()
found = [m for m in llm.get_metrics() if m.name.startswith("vllm:hpu_bucket_")]
print(json.dumps([[m.name, m.labels["phase"], m.labels["bucket"], m.value] for m in found]))
llm.llm_engine.shutdown()
"""
VARIABLES = {
    "PT_HPU_LAZY_MODE": "1",
    "PT_HPU_METRICS_GC_DETAILS": "1",
    "VLLM_SKIP_WARMUP": "1",
    "VLLM_HPU_LOG_STEP_GRAPH_COMPILATION": "1",
    "VLLM_HPU_LOG_STEP_CPU_FALLBACKS_ALL": "1",
    "VLLM_PROFILER_ENABLED": "1",
    "VLLM_TORCH_PROFILER_WITH_STACK": "0",
}


@dataclass(frozen=True)
class Told:
    metrics: list[tuple[str, str, str, float]]
    log: str
    traces: Path


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Told:
    """Of an engine that was not warmed up and had the same load twice."""
    folder = tmp_path_factory.mktemp("traces")
    emulated = Emulated(install(), tmp_path_factory.mktemp("modules"))
    done: subprocess.CompletedProcess[str] = emulated.start(
        PROGRAM, **VARIABLES, VLLM_TORCH_PROFILER_DIR=str(folder)
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return Told(json.loads(done.stdout.splitlines()[-1]), done.stdout + done.stderr, folder)


def test_steps_that_compile_are_logged_and_repeated_ones_are_not(told: Told) -> None:
    lines = re.findall(r"Step (\d+) \((.*)\): \d+ graph compilations, .*: (.*)$", told.log, re.M)
    steps = [int(step) for step, _, _ in lines]
    assert 1 in steps and steps == sorted(set(steps))
    assert all(step <= 4 for step in steps), f"the second load is like the first: {lines}"
    assert lines[0][1].startswith("prefill[") and lines[0][2], "recipes are named"


def test_fallbacks_of_all_steps_are_logged(told: Told) -> None:
    found = re.findall(r"Step (\d+) \(.*\): \d+ ops fell back to the CPU", told.log)
    assert [int(step) for step in found] == list(range(1, 9))


def test_hits_and_padding_of_each_bucket_are_metrics(told: Told) -> None:
    totals: dict[tuple[str, str], float] = {}
    for name, phase, _, value in told.metrics:
        key = (name.removeprefix("vllm:hpu_bucket_"), phase)
        totals[key] = totals.get(key, 0) + value
    assert totals["hits", "decode"] == 6 and totals["tokens", "decode"] == 12
    assert totals["hits", "prefill"] > 0 and totals["padding_tokens", "prefill"] > 0
    assert totals["compile_seconds", "decode"] > 0
    assert totals["graph_bytes", "decode"] == 0


def test_the_table_at_the_end_has_every_launch(told: Told) -> None:
    table = told.log.partition("Launches by shape:\n")[2]
    assert re.search(r"^decode +\d+ +1 +\d+ +6 ", table, re.M), table
    assert "were never launched" in table


def test_the_timeline_has_launches_by_bucket(told: Told) -> None:
    (path,) = told.traces.glob("vllm-*[0-9].trace.json")
    events: list[dict[str, Any]] = json.loads(path.read_text())
    launches = [event["args"] for event in events if "query_len" in event.get("args", {})]
    decodes = [args for args in launches if args["phase"] == "decode"]
    assert len(decodes) == 6 and all(args["real rows"] == 2 for args in decodes)
    assert all(args["padding tokens"] == args["rows"] - 2 for args in decodes)


def test_the_torch_profiler_records_the_rank(told: Told) -> None:
    (path,) = told.traces.glob("vllm-rank0-*.pt.trace.json.gz")
    trace = json.loads(gzip.decompress(path.read_bytes()))
    assert any(event.get("name", "").startswith("aten::") for event in trace["traceEvents"])
