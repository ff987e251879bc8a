"""`vllm bench latency|throughput|startup` with a real engine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vllm.entrypoints.cli.main import main

pytestmark = pytest.mark.engine
STORY = Path(__file__).resolve().parents[2] / "examples" / "models" / "tiny-story"


@pytest.fixture(autouse=True)
def _little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "0.1")


def figures(folder: Path, name: str, *words: str) -> dict[str, object]:
    path = folder / "result.json"
    common = ["--model", str(STORY), "--disable-tqdm", "--output-json", str(path)]
    assert main(["bench", name, *common, *words]) == 0
    return dict(json.loads(path.read_text()))


def test_throughput_generates_what_was_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--num-prompts", "5", "--input-len", "20", "--output-len", "6", "--n", "2"]
    result = figures(tmp_path, "throughput", *flags)
    assert result["num_requests"] == 5 and result["total_output_tokens"] == 5 * 2 * 6
    assert result["total_num_tokens"] == 5 * 20 + 60
    out = capsys.readouterr().out
    assert "Throughput: " in out and " output tokens/s" in out


def test_throughput_takes_text(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text('{"prompt": "Once upon a time", "output_tokens": 3}\n{"prompt": "The cat"}\n')
    flags = ["--dataset-name", "custom", "--dataset-path", str(path), "--num-prompts", "4"]
    result = figures(tmp_path, "throughput", *flags, "--custom-output-len", "5")
    assert result["total_output_tokens"] == 2 * (3 + 5)


def test_throughput_has_no_use_for_a_trace(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "throughput", "--model", "m", "--dataset-name", "trace"]) == 2
    assert "--dataset-name trace: its requests have a time" in capsys.readouterr().err


def test_latency_measures_every_batch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--batch-size", "2", "--input-len", "8", "--output-len", "4", "--num-iters", "3"]
    result = figures(tmp_path, "latency", *flags, "--num-iters-warmup", "1")
    latencies = result["latencies"]
    assert isinstance(latencies, list) and len(latencies) == 3
    assert result["avg_latency"] == pytest.approx(sum(latencies) / 3)
    assert result["percentiles"]["50"] == pytest.approx(sorted(latencies)[1])
    assert "Avg latency: " in capsys.readouterr().out


def test_startup_measures_a_real_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = figures(tmp_path, "startup", "--num-iters", "1", "--max-num-seqs", "4")
    (total,), (ready,) = result["startup_times"], result["ready_times"]
    assert 0 < ready < total
    assert sum(times[0] for times in result["phases"].values()) == pytest.approx(total)
    assert {"weights", "warm-up", "listening", "first token"} <= set(result["phases"])
    assert "to the first token" in capsys.readouterr().out


def test_a_profile_of_a_batch_is_recorded_where_there_is_a_place_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["bench", "latency", "--model", str(STORY), "--disable-tqdm", "--profile"]
    assert main(flags) == 2
    assert "--profile: set VLLM_TORCH_PROFILER_DIR" in capsys.readouterr().err
    monkeypatch.setenv("VLLM_TORCH_PROFILER_DIR", str(tmp_path / "traces"))
    assert main([*flags, "--num-iters-warmup", "1", "--output-len", "2"]) == 0
    assert len(list((tmp_path / "traces").glob("vllm-rank0-*.pt.trace.json.gz"))) == 1
