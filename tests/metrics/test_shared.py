"""Metrics of processes that share one engine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from vllm.metrics.shared import DIRECTORY_VARIABLE, is_shared, sharing_metrics

PROGRAM = """
import sys
from vllm.messages.engine import EngineStats, FinishReason
from vllm.metrics.prometheus import PrometheusStats
from vllm.metrics.stats import FinishedCall, FinishedRequest, IterationStats

stats = PrometheusStats("m", 100, {"block_size": "16"}, counts_engine=sys.argv[1] == "first")
done = FinishedRequest(FinishReason.STOP, 1.0, 0.1, 0.2, 0.7, 5, 8, 8)
iteration = IterationStats([0.3], [0.1], [done], [FinishedCall(2, 8)], 5, 8)
stats.record(EngineStats(num_running=3, num_preemptions=4, num_generation_tokens=9), iteration)
print(stats.exposition().decode())
"""


def run(name: str) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, name], capture_output=True, text=True, check=True
    )
    return {
        sample.name: sample.value
        for family in text_string_to_metric_families(done.stdout)
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
