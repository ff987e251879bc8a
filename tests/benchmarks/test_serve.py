from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.fake_server import FakeServer, fake_server
from vllm.benchmarks.datasets.codec import ordinary_tokens
from vllm.entrypoints.cli.main import build_parser, main

STORY = Path(__file__).resolve().parents[2] / "examples" / "models" / "tiny-story"


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with fake_server() as fake:
        yield fake


def bench(server: FakeServer, *words: str) -> int:
    common = ["--base-url", server.url, "--disable-tqdm", "--num-prompts", "6"]
    return main(["bench", "serve", *common, "--input-len", "12", "--output-len", "5", *words])


def saved(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text()))


def test_requests_are_what_was_asked_for(server: FakeServer, tmp_path: Path) -> None:
    flags = ["--ignore-eos", "--top-p", "0.5", "--extra-body", '{"min_tokens": 2}']
    flags += ["--header", "X-Team=a b", "--request-id-prefix", "run-", "--api-key", "secret"]
    assert bench(server, *flags, "--output-json", str(tmp_path / "r.json")) == 0
    bodies = server.generated()
    assert len(bodies) == 6
    expected = {
        "model": "fake",
        "max_tokens": 5,
        "temperature": 0.0,
        "top_p": 0.5,
        "ignore_eos": True,
        "min_tokens": 2,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert all({k: v for k, v in b.items() if k != "prompt"} == expected for b in bodies)
    headers = [seen[2] for seen in server.seen if seen[1] == "/v1/completions"]
    assert sorted(h["X-Request-Id"] for h in headers) == [f"run-{i}" for i in range(6)]
    assert {h["X-Team"] for h in headers} == {"a b"}
    assert {h["Authorization"] for h in headers} == {"Bearer secret"}
    result = saved(tmp_path / "r.json")
    assert result["total_input_tokens"] == 72 and result["total_output_tokens"] == 30


def test_the_result_has_the_keys_that_scripts_read(server: FakeServer, tmp_path: Path) -> None:
    flags = ["--save-result", "--result-dir", str(tmp_path), "--metadata", "gpu=none", "--label"]
    flags += ["mine", "--goodput", "ttft:100000", "--metric-percentiles", "50,99"]
    assert bench(server, *flags, "--request-rate", "500", "--max-concurrency", "2") == 0
    (path,) = tmp_path.iterdir()
    assert path.name.startswith("mine-500.0qps-concurrency2-fake-")
    result = saved(path)
    names = (
        "date backend model_id tokenizer_id num_prompts request_rate burstiness max_concurrency "
        "duration completed failed total_input_tokens total_output_tokens request_throughput "
        "request_goodput output_throughput total_token_throughput max_output_tokens_per_s "
        "max_concurrent_requests gpu label mean_ttft_ms median_ttft_ms std_ttft_ms p50_ttft_ms "
        "p99_ttft_ms mean_tpot_ms p99_tpot_ms mean_itl_ms p99_itl_ms mean_e2el_ms p99_e2el_ms"
    ).split()
    assert not set(names) - set(result)
    assert result["completed"] == 6 and result["gpu"] == "none"
    assert result["request_goodput"] == pytest.approx(result["request_throughput"])
    assert result["max_concurrent_requests"] <= 2
    assert "ttfts" not in result


def test_details_have_an_entry_per_request(server: FakeServer, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    assert bench(server, "--save-detailed", "--output-json", str(path)) == 0
    result = saved(path)
    assert result["input_lens"] == [12] * 6 and result["output_lens"] == [5] * 6
    assert result["generated_texts"] == ["once upon a timeonce "] * 6
    assert [len(gaps) for gaps in result["itls"]] == [4] * 6
    assert all(ttft > 0 for ttft in result["ttfts"])


def test_results_can_be_appended(server: FakeServer, tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    for _ in range(2):
        bench(server, "--append-result", "--output-json", str(path))
    assert [json.loads(line)["completed"] for line in path.read_text().splitlines()] == [6, 6]


def test_chat_sends_messages_and_does_not_count_the_role(
    server: FakeServer, tmp_path: Path
) -> None:
    path = tmp_path / "r.json"
    assert (
        bench(server, "--backend", "openai-chat", "--save-detailed", "--output-json", str(path))
        == 0
    )
    body = server.generated()[0]
    assert body["messages"][0]["role"] == "user" and body["max_completion_tokens"] == 5
    assert saved(path)["itls"][0] and len(saved(path)["itls"][0]) == 4


def test_the_summary_has_the_lines_that_scripts_read(
    server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    bench(server)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "============ Serving Benchmark Result ============"
    found = {name.strip(): value for name, _, value in (line.partition(":") for line in lines)}
    assert found["Successful requests"].strip() == "6"
    assert float(found["Total generated tokens"]) == 30
    for name in ("Mean TTFT (ms)", "P99 TPOT (ms)", "Median ITL (ms)", "P99 E2EL (ms)"):
        assert float(found[name]) >= 0


def test_without_usage_events_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    with fake_server(sends_usage=False) as server:
        bench(server, "--output-json", str(path))
    result = saved(path)
    assert result["total_output_tokens"] == 30 and result["total_input_tokens"] == 72


def test_failures_are_counted_shown_and_are_exit_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "r.json"
    with fake_server(fails_when='"max_tokens": 5') as server:
        assert bench(server, "--output-json", str(path)) == 1
    assert "6 failed: ServerError: POST /v1/completions: status 400" in capsys.readouterr().out
    assert saved(path)["failed"] == 6 and saved(path)["mean_ttft_ms"] == 0


def test_warm_up_requests_are_not_measured_and_share_no_prompt(server: FakeServer) -> None:
    assert bench(server, "--num-warmups", "3") == 0
    prompts = [body["prompt"] for body in server.generated()]
    assert len(prompts) == 9 and len(set(prompts)) == 9


def test_a_profile_is_of_the_measurement_without_its_warm_up(server: FakeServer) -> None:
    assert bench(server, "--num-warmups", "2", "--profile") == 0
    paths = [path for _, path, _, _ in server.seen if "completions" in path or "profile" in path]
    completion = "/v1/completions"
    assert paths == [completion] * 2 + ["/start_profile"] + [completion] * 6 + ["/stop_profile"]


def test_a_server_that_records_no_profiles_ends_the_benchmark(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with fake_server(profiles=False) as server:
        assert bench(server, "--profile") == 2
        assert not server.generated()
    assert "--profile: POST /start_profile: status 400" in capsys.readouterr().err


def test_a_plot_is_written(server: FakeServer, tmp_path: Path) -> None:
    assert bench(server, "--plot", str(tmp_path / "p.svg")) == 0
    assert "<svg" in (tmp_path / "p.svg").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--goodput", "speed:3"], "--goodput speed:3"),
        (["--plot", "x.png"], r"ends in .svg"),
        (["--metadata", "x"], "--metadata x: must be NAME=VALUE"),
        (["--header", "x"], "--header 'x': must be NAME=VALUE"),
        (["--header", "x=a\nb"], "on one line"),
        (["--result-dir", "/no/such"], "--result-dir /no/such"),
        (["--dataset-name", "trace"], "needs --dataset-path"),
        (["--base-url", "ftp://x"], "--base-url"),
        (["--endpoint", "v1/completions"], "--endpoint v1/completions: must start with /"),
        (["--ramp-up-strategy", "linear"], "--ramp-up-strategy linear: needs"),
    ],
)
def test_a_wrong_flag_is_named_before_anything_is_sent(
    server: FakeServer, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert bench(server, *words) == 2
    assert message in capsys.readouterr().err
    assert not server.generated()


@pytest.mark.parametrize(
    "words", [["--request-rate", "0"], ["--num-prompts", "0"], ["--seed", "x"]]
)
def test_a_value_out_of_range_is_named(
    server: FakeServer, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        bench(server, *words)
    assert stop.value.code == 2
    assert words[0] in capsys.readouterr().err


def test_a_server_that_is_loading_is_waited_for(capsys: pytest.CaptureFixture[str]) -> None:
    with fake_server(num_loading=2) as server:
        assert bench(server) == 2
        assert "status 503" in capsys.readouterr().err
        assert bench(server, "--ready-check-timeout-sec", "30") == 0


def test_a_tokenizer_of_ones_own_leaves_the_servers_alone(server: FakeServer) -> None:
    assert bench(server, "--tokenizer", str(STORY), "--served-model-name", "other") == 0
    assert {path for _, path, _, _ in server.seen} == {"/v1/models", "/v1/completions"}
    assert {body["model"] for body in server.generated()} == {"other"}


def test_a_tokenizer_that_does_not_exist_is_named(
    server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench(server, "--tokenizer", "/no/such") == 2
    assert "--tokenizer /no/such" in capsys.readouterr().err


def test_where_no_text_has_the_length_tokens_are_sent(server: FakeServer) -> None:
    """A prompt of one token: the fake server puts a special one before any text."""
    assert bench(server, "--input-len", "1") == 0
    assert all(len(body["prompt"]) == 1 for body in server.generated())


def test_a_url_with_too_much_is_explained(
    server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench(server, "--base-url", f"{server.url}/v1") == 2
    assert "--base-url is without /v1" in capsys.readouterr().err


def test_a_key_that_is_missing_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with fake_server(key="k") as server:
        assert bench(server) == 2
        assert "status 401" in capsys.readouterr().err
        assert bench(server, "--api-key", "k") == 0


def test_flags_come_from_a_file_and_the_command_line_wins(
    server: FakeServer, tmp_path: Path
) -> None:
    config = tmp_path / "bench.yaml"
    config.write_text(
        "backend: openai-chat\noutput_len: 3\nrandom-input-len: 9\nignore-eos: true\n"
        "metadata: [a=1, b=2]\nextra_body: {top_k: 5, nested: {x: [1]}}\nrequest-rate: .inf\n"
    )
    result = tmp_path / "r.json"
    flags = ["--base-url", server.url, "--num-prompts", "2", "--disable-tqdm"]
    words = ["bench", "serve", "--config", str(config), *flags, "--output-json", str(result)]
    assert main([*words, "--output-len", "2", "--no-ignore-eos"]) == 0
    body = server.generated()[0]
    assert body["max_completion_tokens"] == 2 and "ignore_eos" not in body
    assert body["top_k"] == 5 and body["nested"] == {"x": [1]}
    assert saved(result)["b"] == "2" and saved(result)["total_input_tokens"] == 18


def test_an_unknown_key_of_a_file_is_named_with_a_hint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "bench.yaml"
    config.write_text("num_prompt: 3\n")
    with pytest.raises(SystemExit) as stop:
        main(["bench", "serve", "--config", str(config)])
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert f"--config {config}: num_prompt: there is no flag --num-prompt." in message
    assert "Did you mean --num-prompts?" in message


def test_an_option_is_read_by_each_benchmark() -> None:
    for name in ("serve", "latency", "throughput", "startup"):
        words = ["bench", name, "--model", "m"]
        args = build_parser("bench", words).parse_args(words)
        assert args.model == "m" and not args.disable_tqdm


def test_ordinary_tokens_are_distinct_and_without_the_special_one() -> None:
    from tests.benchmarks.fake_server import BOS, WordCodec

    tokens = ordinary_tokens(WordCodec())
    assert BOS not in tokens and len(tokens) == len(set(tokens))
