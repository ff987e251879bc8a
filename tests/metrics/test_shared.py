"""Metrics of processes that share one engine."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from vllm.metrics.shared import DIRECTORY_VARIABLE, is_shared, sharing_metrics

PROGRAM = """
import sys
from vllm.messages.engine import EngineStats, FinishReason
from vllm.metrics.prometheus import PrometheusStats
from vllm.metrics.stats import FinishedCall, FinishedRequest, IterationStats

stats = PrometheusStats("m", 100, [{"block_size": "16"}], counts_engine=sys.argv[1] == "first")
done = FinishedRequest(FinishReason.STOP, 1.0, 0.1, 0.2, 0.7, 5, 8, 8)
iteration = IterationStats([0.3], [0.1], [done], [FinishedCall(2, 8)], 5, 8)
stats.record(EngineStats(num_running=3, num_preemptions=4, num_generation_tokens=9), iteration)
print(stats.exposition().decode())
"""


# Two engines, of which only the second one steps and has requests.
SEVERAL = """
import sys
from vllm.messages.engine import EngineStats, FinishReason
from vllm.messages.facts import RankMemory
from vllm.metrics.prometheus import PrometheusStats
from vllm.metrics.stats import IterationStats

is_first = sys.argv[1] == "first"
stats = PrometheusStats("m", 100, [{"blocks": "11"}, {"blocks": "12"}], is_first)
if is_first:
    stats.show_ranks([[RankMemory(5, 6, 7, 8)], [RankMemory(9, 6, 7, 8)]])
for engine in (EngineStats(num_running=3, num_preemptions=4), EngineStats(num_preemptions=1)):
    stats.record(engine, IterationStats([0.3], num_generation_tokens=8), 1)
stats.silence.show([0.5, 1.5])
print(stats.exposition().decode())
"""


def families_of(program: str, name: str) -> Iterator[Metric]:
    done = subprocess.run(
        [sys.executable, "-c", program, name], capture_output=True, text=True, check=True
    )
    yield from text_string_to_metric_families(done.stdout)


def run(name: str) -> dict[str, float]:
    return {
        sample.name: sample.value
        for family in families_of(PROGRAM, name)
        for sample in family.samples
        if sample.value
    }


def test_each_process_counts_its_requests_and_one_the_engine(tmp_path: Path) -> None:
    with sharing_metrics(f"{tmp_path}/metrics"):
        alone = run("first")
        both = run("second")
    assert alone["vllm:generation_tokens_total"] == 8
    for name in ("vllm:generation_tokens_total", "vllm:prompt_tokens_total"):
        assert both[name] == 2 * alone[name]
    assert both["vllm:time_to_first_token_seconds_count"] == 2
    assert both["vllm:request_params_n_sum"] == 4
    for name in ("vllm:num_preemptions_total", "vllm:iteration_tokens_total_sum"):
        assert both[name] == alone[name] > 0
    assert both["vllm:num_requests_running"] == 3
    assert both["vllm:cache_config_info"] == 1


def test_series_of_several_engines_add_up_apart(tmp_path: Path) -> None:
    with sharing_metrics(f"{tmp_path}/metrics"):
        for name in ("first", "second"):
            families = list(families_of(SEVERAL, name))
    found: dict[str, dict[str, float]] = {}
    for family in families:
        for sample in family.samples:
            found.setdefault(sample.name, {})[sample.labels["engine"]] = sample.value
    for name, of_engines in {
        "vllm:generation_tokens_total": {"0": 0, "1": 32},
        "vllm:time_to_first_token_seconds_count": {"0": 0, "1": 4},
        "vllm:num_preemptions_total": {"0": 0, "1": 5},
        "vllm:num_requests_running": {"0": 0, "1": 0},
        "vllm:engine_silence_seconds": {"0": 0.5, "1": 1.5},
        "vllm:cache_config_info": {"0": 1, "1": 1},
    }.items():
        assert found[name] == of_engines, name
    ranks = [family for family in families if family.name == "vllm:rank_memory_bytes"]
    weights = {
        sample.labels["engine"]: sample.value
        for sample in ranks[0].samples
        if sample.labels["part"] == "weights"
    }
    assert weights == {"0": 5, "1": 9}


def test_a_directory_that_the_user_named_is_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ours = tmp_path / "metrics"
    with sharing_metrics(str(ours)):
        assert os.environ[DIRECTORY_VARIABLE] == str(ours) and ours.is_dir() and is_shared()
    assert not is_shared()
    monkeypatch.setenv(DIRECTORY_VARIABLE, str(tmp_path))
    with sharing_metrics(f"{tmp_path}/other"):
        assert os.environ[DIRECTORY_VARIABLE] == str(tmp_path)
    assert not (tmp_path / "other").exists()
