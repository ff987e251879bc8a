"""The commands and examples that talk to a server."""

import json
import subprocess
import sys

import pytest

from tests.entrypoints.openai.real_server import ROOT
from tests.limits import HANG_S
from vllm.entrypoints.cli.main import main

pytestmark = pytest.mark.engine


def test_chat_prints_the_answer_and_remembers_the_conversation(server, capsys, monkeypatch):
    words = ["chat", "--url", f"{server.url}/v1", "--temperature", "0", "--max-tokens", "8"]
    assert main([*words, "-q", "Tell me a short story."]) == 0
    one = capsys.readouterr().out
    assert one.strip()
    lines = iter(["Tell me a short story.", "Another one, please."])
    monkeypatch.setattr("builtins.input", lambda _: next(lines, None) or raise_end())
    assert main(words) == 0
    both = capsys.readouterr().out
    assert both.startswith(one)
    assert len(both) > len(one)


def raise_end():
    raise EOFError


def test_complete_prints_the_continuation(server, capsys):
    assert main(["complete", "--url", f"{server.url}/v1", "-q", "Once upon a time"]) == 0
    assert capsys.readouterr().out.strip()


def test_the_example_of_the_openai_client_runs(server):
    assert len(output_of("examples/openai_client.py", f"{server.url}/v1")) > 100


@pytest.mark.parametrize("example", ["offline_inference.py", "chat.py"])
def test_the_offline_examples_run(example):
    assert len(output_of(f"examples/{example}")) > 100


@pytest.mark.parametrize("benchmark", ["latency", "throughput"])
def test_the_offline_benchmarks_run(benchmark, tmp_path):
    figures = tmp_path / "figures.json"
    load = {
        "latency": ["--batch-size", "2", "--num-iters", "2", "--num-iters-warmup", "1"],
        "throughput": ["--num-prompts", "4"],
    }
    command = ["-m", "vllm.entrypoints.cli.main", "bench", benchmark]
    command += ["--model", "examples/models/tiny-story", "--input-len", "8", "--output-len", "8"]
    command += [*load[benchmark], "--output-json", str(figures), "--disable-tqdm"]
    output_of(*command)
    assert json.loads(figures.read_text())


def output_of(*words):
    """What a Python program prints; it must succeed."""
    done = subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
