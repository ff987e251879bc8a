"""`vllm bench serve` on a real server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.entrypoints.openai.real_server import RealServer
from vllm.entrypoints.cli.main import main

pytestmark = pytest.mark.engine
TRACE = "TIMESTAMP,ContextTokens,GeneratedTokens\n0,40,5\n0.1,700,3\n0.2,33,6\n"


def figures(server: RealServer, folder: Path, *words: str) -> dict[str, object]:
    path = folder / "result.json"
    flags = ["--base-url", server.url, "--disable-tqdm", "--save-detailed", "--ignore-eos"]
    assert main(["bench", "serve", *flags, "--output-json", str(path), *words]) == 0
    return dict(json.loads(path.read_text()))


@pytest.mark.parametrize("backend", ["openai", "openai-chat"])
def test_lengths_are_exact_on_a_real_server(
    server: RealServer, tmp_path: Path, backend: str
) -> None:
    flags = ["--num-prompts", "12", "--input-len", "50", "--output-len", "8"]
    result = figures(server, tmp_path, "--backend", backend, *flags, "--max-concurrency", "4")
    assert result["output_lens"] == [8] * 12
    # A chat template adds the same to every prompt.
    assert len(set(result["input_lens"])) == 1 and result["input_lens"][0] >= 50
    assert backend == "openai-chat" or result["input_lens"][0] == 50
    assert all(1 <= len(gaps) + 1 <= 8 for gaps in result["itls"])
    assert result["max_concurrent_requests"] <= 4


def test_a_trace_is_replayed_in_its_order_and_lengths(server: RealServer, tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text(TRACE)
    flags = ["--dataset-name", "trace", "--dataset-path", str(trace), "--trace-max-input-len"]
    result = figures(server, tmp_path, *flags, "100")
    assert result["input_lens"] == [40, 100, 33] and result["output_lens"] == [5, 3, 6]
    starts = result["start_times"]
    assert starts[1] >= 0.1 and starts[2] >= 0.2


def test_prefixes_are_found_in_the_cache(server: RealServer, tmp_path: Path) -> None:
    before = server.metric("vllm:prefix_cache_hits_total")
    flags = ["--dataset-name", "prefix_repetition", "--num-prompts", "8"]
    flags += ["--prefix-repetition-num-prefixes", "2", "--prefix-repetition-prefix-len", "64"]
    flags += ["--prefix-repetition-suffix-len", "16", "--prefix-repetition-output-len", "2"]
    figures(server, tmp_path, *flags, "--max-concurrency", "1", "--seed", "5")
    # Text of exact length need not begin with exactly the drawn tokens: most of the blocks do.
    assert server.metric("vllm:prefix_cache_hits_total") - before >= 6 * 48
