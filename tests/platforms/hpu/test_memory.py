"""How the memory of a small emulated device is used, and what happens when it runs out."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.conftest import STORY
from tests.hpu_emulator.conftest import Emulated

pytestmark = pytest.mark.engine

GIB = 1 << 30
SHORT = {"max_model_len": 32, "max_num_batched_tokens": 32, "max_num_seqs": 2, "block_size": 16}
# `fill` leaves the device with a few bytes while a rehearsal runs, as another's tensors would.
PROGRAM = """
import json
import sys

import torch

from vllm import LLM, SamplingParams
from vllm.worker.model_runner import ModelRunner

rehearse = ModelRunner.rehearse
seen = {{"compile": 0, "capture": 0}}


def in_little_memory(runner, launch, ends_all_ways=False, captures=False):
    what = "capture" if captures else "compile"
    seen[what] += 1
    ballast = None
    if {fill!r} == [what, seen[what]]:
        free = torch.hpu.mem_get_info()[0]
        ballast = torch.empty(free - 4096, dtype=torch.uint8, device="hpu")
    try:
        rehearse(runner, launch, ends_all_ways, captures)
    finally:
        del ballast


if {fill!r}:
    ModelRunner.rehearse = in_little_memory
llm = LLM({path!r}, dtype="float32", **json.loads({options!r}))
params = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)
outputs = llm.generate(["Once upon", "The cat"], params, use_tqdm=False)
print(json.dumps([output.outputs[0].token_ids for output in outputs]))
llm.llm_engine.shutdown()
"""
TOKENS = [
    [262, 505, 16, 475, 285, 262, 1276, 601],
    [285, 887, 16, 291, 869, 1503, 762, 1504],
]


def start(
    emulated: Emulated,
    options: dict[str, Any],
    memory: str = "2GiB",
    fill: tuple[str, int] | None = None,
    **variables: str,
) -> tuple[int, str]:
    """-> exit status and log of an engine in graph mode that generates a little."""
    code = PROGRAM.format(
        path=str(STORY), options=json.dumps({**SHORT, **options}), fill=list(fill or ())
    )
    base = {"PT_HPU_LAZY_MODE": "1", "HPU_EMULATOR_MEMORY": memory}
    done = emulated.start(code, **{**base, **variables})
    return done.returncode, done.stdout + done.stderr


def tokens_in(log: str) -> Any:
    return json.loads(next(line for line in log.splitlines() if line.startswith("[[")))


def warnings(log: str) -> list[str]:
    """Of warm-up and launches."""
    return re.findall(r"WARNING .*\[platforms\.hpu\.(?:warmup|graphs)\] (.*)", log)


def captured(log: str) -> dict[str, int]:
    found = re.findall(r"Graph/(\w+) captured:(\d+) \(", log)
    return {phase: int(number) for phase, number in found}


def test_a_device_of_two_gib_is_divided_as_documented(warm_log: str) -> None:
    log = warm_log
    found = re.search(
        r"Free device memory: (\S+) GiB, (\S+) GiB usable, (\S+) GiB reserved for graphs, "
        r"(\S+) GiB reserved for KV cache, (\S+) GiB margin "
        r"\(gpu_memory_utilization=0.9, VLLM_GRAPH_RESERVED_MEM=0.1\)",
        log,
    )
    assert found is not None, log
    free, usable, graphs, cache, margin = map(float, found.groups())
    assert 1.9 < free <= 2
    assert usable == pytest.approx(0.9 * free, abs=0.02)
    assert graphs == pytest.approx(0.1 * usable, abs=0.02)
    assert cache == pytest.approx(usable - graphs, abs=0.02)
    assert margin == pytest.approx(free - usable, abs=0.02)
    assert captured(log) == {"Prompt": 5, "Decode": 4}
    assert tokens_in(log) == TOKENS


@pytest.mark.parametrize(
    "line",
    [
        r"Prompt bucket config \(min, step, max_warmup, count\) bs:\[.*\], query:\[.*\], blocks:\[",
        r"Generated 5 prompt buckets \[bs, query, num_blocks\]: \[\(1, 16, 0\), .*\]",
        r"\[Warmup\]\[Prompt\]\[1/5\] batch_size:1 query_len:32 num_blocks:1 free_mem:\S+ GiB",
        r"\[Warmup\]\[Graph/Decode\]\[1/4\] batch_size:2 query_len:1 num_blocks:2 free_mem:\S+ GiB",
        r"Graph/Decode captured:4 \(100\.0%\) used_mem:\S+ GiB buckets:\[\(1, 1, 1\), .*\]",
        r"Warmup finished in \d+ secs, allocated \S+ GiB of device memory",
    ],
)
def test_warm_up_logs_what_the_documentation_shows(warm_log: str, line: str) -> None:
    assert re.search(line, warm_log), warm_log


@pytest.fixture(scope="module")
def warm_log(emulated: Emulated) -> str:
    status, log = start(emulated, {})
    assert status == 0, log
    return log


def test_graphs_end_with_their_budget_and_the_others_run_without(emulated: Emulated) -> None:
    status, log = start(emulated, {"num_gpu_blocks_override": 20}, memory="5MiB")
    assert status == 0, log
    numbers = captured(log)
    assert 0 < numbers["Prompt"] < 5 and numbers["Decode"] > 0
    assert f"{5 - numbers['Prompt']} run without a graph" in log
    assert not warnings(log), "a spent budget is what was asked for"
    assert "was not warmed-up" not in log
    assert tokens_in(log) == TOKENS


def test_memory_that_ends_while_capturing_leaves_fewer_graphs_and_one_warning(
    emulated: Emulated,
) -> None:
    status, log = start(emulated, {}, fill=("capture", 3))
    assert status == 0, log
    assert len(warnings(log)) == 1, log
    assert "Out of memory while capturing prompt graphs: 2 of 5 are captured" in log
    assert tokens_in(log) == TOKENS


def test_memory_that_ends_while_compiling_leaves_that_shape_to_requests(
    emulated: Emulated,
) -> None:
    status, log = start(emulated, {}, fill=("compile", 5))
    assert status == 0, log
    assert len(re.findall("Out of memory while compiling 1 shapes", log)) == 1, log
    assert tokens_in(log) == TOKENS


def test_a_context_that_does_not_fit_is_refused_with_the_longest_that_does(
    emulated: Emulated,
) -> None:
    how = {"gpu_memory_utilization": 0.01}
    variables = {"VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1", "VLLM_SKIP_WARMUP": "1"}
    status, log = start(emulated, {**how, "max_model_len": 20000}, **variables)
    found = re.search(r"ConfigError: .*or set --max-model-len to at most (\d+)", log)
    assert status != 0 and found is not None, log
    assert "VLLM_CPU_KVCACHE_SPACE" not in log
    longest = int(found[1])
    assert 5000 < longest < 20000
    status, log = start(emulated, {**how, "max_model_len": longest}, **variables)
    assert status == 0, log


@pytest.mark.parametrize(
    ("memory", "options", "error"),
    [
        ("2MiB", {}, "--device hpu: the device has too little memory for the weights"),
        ("64MiB", {"num_gpu_blocks_override": 9999}, "more than the 0.06 GiB that are free"),
    ],
)
def test_what_does_not_fit_is_named(
    emulated: Emulated, memory: str, options: dict[str, Any], error: str
) -> None:
    status, log = start(emulated, options, memory)
    assert status != 0 and error in log, log
    assert "VLLM_CPU_KVCACHE_SPACE" not in log


def test_a_start_without_warm_up_warns_and_generates_the_same(emulated: Emulated) -> None:
    status, log = start(emulated, {}, VLLM_SKIP_WARMUP="1")
    assert status == 0, log
    assert "Skipping warm-up (VLLM_SKIP_WARMUP)" in log and "[Warmup]" not in log
    shapes = re.findall(r"Configuration: (\(.*\)) was not warmed-up!", log)
    assert "(prompt, 1, 16, 0)" in shapes and len(shapes) == len(set(shapes)), log
    assert tokens_in(log) == TOKENS
