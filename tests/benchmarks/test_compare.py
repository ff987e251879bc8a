"""benchmarks/compare: checkpoints, sessions, results and reports, with an engine of ten lines."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from tokenizers import Tokenizer

from benchmarks.compare import main as program
from benchmarks.compare import memory, models, plot, report
from benchmarks.compare.engines import KINDS, Engine, Kind, Limits, parse_peers
from benchmarks.compare.results import Record, Results
from benchmarks.compare.session import EngineProblem, session
from benchmarks.compare.workloads import FIGURES, Prompts, suits

HOME = Path(sys.prefix)
LIMITS = Limits((0, 1), kv_gib=1)
TINY = models.SHAPES["tiny"]
FAKE = """
import os
import sys

class Engine:
    def generate(self, prompts, max_tokens):
        print("engines print what they like")
        if max_tokens == 13:
            raise ValueError("no thirteen")
        if max_tokens == 14:
            os._exit(3)
        return [prompt[:1] * (max_tokens if max_tokens != 15 else 14) for prompt in prompts]

def load(settings):
    if settings["options"].get("fails"):
        raise RuntimeError("cannot load " + settings["model"])
    return Engine()
"""


@pytest.fixture
def fake(tmp_path: Path) -> Engine:
    """An engine whose adapter lies in tmp_path and answers with the first token of its prompt."""
    (tmp_path / "fake_engine.py").write_text(FAKE)
    kind = Kind(
        "fake_engine", "pytest", variables=lambda limits, home: {"PYTHONPATH": str(tmp_path)}
    )
    return Engine("fake", kind, HOME)


@pytest.mark.parametrize("name", models.SHAPES)
def test_weights_of_a_shape_are_those_of_its_checkpoint(name: str) -> None:
    shape = models.SHAPES[name]
    sizes = [size for _, size in models.tensor_shapes(shape) if len(size) == 2]
    assert shape.num_weights == sum(rows * columns for rows, columns in sizes)


def test_a_token_reads_only_its_experts() -> None:
    shape = models.SHAPES["moe-0.5b"]
    dense = replace(shape, experts_per_token=shape.num_experts)
    unread = shape.num_experts - shape.experts_per_token
    expert_bytes = 3 * shape.hidden * shape.intermediate * models.BYTES_PER_WEIGHT
    assert dense.decode_bytes == dense.weight_bytes
    assert dense.decode_bytes - shape.decode_bytes == shape.num_layers * unread * expert_bytes


def test_a_checkpoint_is_written_once_and_again_when_its_shape_changed(tmp_path: Path) -> None:
    path = models.ensure(TINY, tmp_path)
    written_ns = (path / "config.json").stat().st_mtime_ns
    assert models.ensure(TINY, tmp_path) == path
    assert (path / "config.json").stat().st_mtime_ns == written_ns
    models.ensure(replace(TINY, num_layers=1), tmp_path)
    assert json.loads((path / "config.json").read_text())["num_hidden_layers"] == 1


def test_every_id_of_the_tokenizer_has_a_text_of_its_own(tmp_path: Path) -> None:
    models.write_tokenizer(TINY, tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == TINY.vocab
    assert tokenizer.decode([TINY.vocab - 1, 300]) == f" w{TINY.vocab - 1} w300"
    assert tokenizer.decode(tokenizer.encode("the ß").ids) == "the ß"


def test_prompts_depend_on_model_workload_and_repetition_only() -> None:
    def first(workload: str, repetition: int) -> list[int]:
        return Prompts.of(TINY, workload, repetition).one(20)

    assert first("latency", 0) == first("latency", 0)
    assert first("latency", 0) != first("latency", 1) != first("prefix", 1)


def test_a_session_answers_orders_whatever_the_engine_prints(fake: Engine, tmp_path: Path) -> None:
    with session(fake, tmp_path / "model", LIMITS, tmp_path / "log", 20) as opened:
        answer = opened.generate([[7, 8], [9]], 3)
    assert answer.first == [7, 7, 7]
    assert answer.seconds >= 0
    assert "engines print what they like" in (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    ("max_tokens", "told"),
    [(13, "no thirteen"), (14, "process ended"), (15, r"asked for 15 tokens each, got \[14\]")],
)
def test_what_an_engine_cannot_do_is_told(
    fake: Engine, tmp_path: Path, max_tokens: int, told: str
) -> None:
    with (
        session(fake, tmp_path / "model", LIMITS, tmp_path / "log", 20) as opened,
        pytest.raises(EngineProblem, match=told),
    ):
        opened.generate([[7]], max_tokens)


def test_a_model_that_does_not_load_is_told(fake: Engine, tmp_path: Path) -> None:
    broken = replace(fake, kind=replace(fake.kind, options={"fails": True}))
    with (
        pytest.raises(EngineProblem, match="cannot load"),
        session(broken, tmp_path / "model", LIMITS, tmp_path / "log", 20),
    ):
        pass


def test_an_environment_has_none_of_our_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/ours")
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "DEBUG")
    variables = Engine("vllm", KINDS["vllm"], Path("/nowhere")).environment(LIMITS)
    assert "PYTHONPATH" not in variables
    assert "VLLM_LOGGING_LEVEL" not in variables
    assert variables["OMP_NUM_THREADS"] == "2"
    assert variables["VLLM_CPU_OMP_THREADS_BIND"] == "0,1"


@pytest.mark.parametrize("text", ["nobody", "vllm=/does/not/exist"])
def test_peers_that_cannot_be_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="--peers"):
        parse_peers(text, HOME)


def test_the_smallest_model_is_for_the_host_only() -> None:
    assert suits("host", "tiny")
    assert not suits("latency", "tiny")
    assert not suits("host", "qwen3-0.6b")
    assert suits("serve", "tiny")


def results_of(*rows: tuple[str, str, float]) -> Results:
    """Of engine, figure and value; the machine reads 30 GB/s and multiplies at 500 GFLOP/s."""
    machine = {"read_gb_per_s": 30.0, "read_gb_per_s_1": 20.0, "gemm_gflop_per_s": 500.0}
    records = [
        Record(number, "qwen3-0.6b", engine, FIGURES[name].workload, {name: value})
        for number, (engine, name, value) in enumerate(rows)
    ]
    return Results({}, [machine], records, {"qwen3-0.6b": {"ours": [1, 2, 3], "llama": [1, 2, 4]}})


def test_medians_and_limits_over_repetitions() -> None:
    results = results_of(*(("ours", "decode_ms", value) for value in (50.0, 40.0, 45.0)))
    spread = results.spread("qwen3-0.6b", "ours", "decode_ms")
    assert spread is not None
    assert (spread.median, spread.low, spread.high, spread.count) == (45.0, 40.0, 50.0, 3)


def test_the_best_peer_is_the_least_or_the_most_as_the_figure_wants() -> None:
    results = results_of(
        ("ours", "decode_ms", 40.0),
        ("llama", "decode_ms", 50.0),
        ("vllm", "decode_ms", 60.0),
        ("ours", "output_tokens_per_s", 120.0),
        ("llama", "output_tokens_per_s", 60.0),
        ("vllm", "output_tokens_per_s", 80.0),
    )
    assert results.against_best_peer("qwen3-0.6b", "decode_ms") == ("llama", 1.25)
    assert results.against_best_peer("qwen3-0.6b", "output_tokens_per_s") == ("vllm", 1.5)
    assert results.against_best_peer("qwen3-0.6b", "ttft_ms") is None


def test_shares_of_the_roofline() -> None:
    results = results_of(("ours", "decode_ms", 50.0), ("ours", "prefill_tokens_per_s", 400.0))
    shape = models.SHAPES["qwen3-0.6b"]
    assert results.roofline("qwen3-0.6b", "ours") == pytest.approx(
        {
            "decode_of_bandwidth": shape.decode_bytes / 30e9 / 0.050,
            "prefill_of_gemm": shape.prefill_flops(2048) / (2048 / 400) / 500e9,
        }
    )


def test_the_report_has_every_figure_and_every_problem() -> None:
    results = results_of(("ours", "decode_ms", 40.0), ("llama", "decode_ms", 50.0))
    results.records.append(
        Record(0, "qwen3-0.6b", "transformers", "serve", {}, "has no\nserver here")
    )
    text = report.text(results)
    assert "1.25× llama" in text
    assert "transformers, qwen3-0.6b, serve: has no server here" in text
    agreement = next(line for line in text.splitlines() if line.startswith("| first tokens"))
    assert [cell.strip() for cell in agreement.split("|")[2:4]] == ["3/3", "2/3"]
    tables = [line for line in text.splitlines() if line.startswith("|") and "decode" in line]
    assert len({len(line) for line in tables}) == 1


def test_the_plot_is_a_document_with_a_bar_per_engine() -> None:
    results = results_of(
        ("ours", "decode_ms", 40.0), ("ours", "decode_ms", 44.0), ("llama", "decode_ms", 50.0)
    )
    drawing = ElementTree.fromstring(plot.svg(results))
    kinds = [node.get("class") for node in drawing.iter() if node.tag.endswith("rect")]
    assert kinds.count("o") == kinds.count("p") == 1
    whiskers = [node for node in drawing.iter() if node.get("class") == "r"]
    assert len(whiskers) == 1  # one repetition has no spread


@pytest.mark.skipif(not memory.PROC.exists(), reason="needs /proc")
def test_memory_of_a_process_tree_is_seen(fake: Engine, tmp_path: Path) -> None:
    with session(fake, tmp_path / "model", LIMITS, tmp_path / "log", 20) as opened:
        opened.generate([[1]], 1)
        opened.watch.note()
        resident = memory.resident_mib(opened.process.pid)
        proportional = opened.watch.figures()["peak_pss_mib"]
    assert 1 < proportional <= resident


def test_a_whole_run_is_written_as_json(
    fake: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = {"read_gb_per_s": 30.0, "gemm_gflop_per_s": 500.0}
    monkeypatch.setattr(program, "measure_machine", lambda plan: machine)
    args = program.parser().parse_args(["--work-dir", str(tmp_path), "--threads", "1"])
    args.workloads, args.models, args.repetitions = "host,serve", "tiny", 2
    plan = replace(program.plan_of(args), engines=[fake])
    results = program.empty_results(plan)
    program.run(plan, results)
    written = json.loads((tmp_path / "results.json").read_text())
    figures = written["summary"]["tiny"]["fake"]["figures"]
    assert figures["host_tokens_per_s"]["count"] == 2
    assert figures["startup_s"]["median"] > 0
    assert written["versions"]["fake"] == pytest.__version__
    problems = [record for record in written["records"] if record["problem"]]
    assert {record["workload"] for record in problems} == {"serve"}


@pytest.mark.skipif(not memory.PROC.exists(), reason="needs /proc")
def test_nothing_is_left_running_when_the_program_is_ended(fake: Engine, tmp_path: Path) -> None:
    with (
        pytest.raises(SystemExit),
        session(fake, tmp_path / "model", LIMITS, tmp_path / "log", 20) as opened,
    ):
        sys.exit(143)
    assert opened.process.returncode is not None
    assert not (memory.PROC / str(opened.process.pid)).exists()
