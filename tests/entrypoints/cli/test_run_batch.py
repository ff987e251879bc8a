from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.entrypoints.openai.real_server import STORY
from vllm.entrypoints.cli.main import main


def line(custom_id: str, url: str, **body: object) -> str:
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": url, "body": body}) + "\n"


@pytest.mark.engine
def test_a_batch_is_answered_by_a_real_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "0.25")
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    chat = [{"role": "user", "content": "Tell me a story."}]
    source.write_text(
        line("one", "/v1/completions", prompt="Once upon", max_tokens=4, temperature=0)
        + line("two", "/v1/chat/completions", messages=chat, max_tokens=6)
        + line("three", "/v1/embeddings", input="x")
        + line("four", "/v1/completions", prompt="Once", max_tokens=100_000)
        + "no json\n"
    )
    flags = ["-i", str(source), "-o", str(target), "--model", str(STORY), "--disable-tqdm"]
    assert main(["run-batch", *flags, "--max-num-seqs", "8"]) == 0
    found = [json.loads(text) for text in target.read_text().splitlines()]
    assert [item["custom_id"] for item in found] == ["one", "two", "three", "four", None]
    assert found[0]["response"]["body"]["usage"]["completion_tokens"] == 4
    assert found[1]["response"]["body"]["choices"][0]["message"]["content"]
    assert [item["error"] is None for item in found[:2]] == [True, True]
    assert found[2]["error"]["code"] == "invalid_url"
    assert "5 lines" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-o", "x"], "-i is missing"),
        (["-i", "x"], "-o is missing"),
        (["-i", "/no/such", "-o", "x"], "--input-file /no/such: No such file"),
        (["-i", __file__, "-o", __file__], "is the input file"),
    ],
)
def test_files_are_checked_before_the_model_is_loaded(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run-batch", "--model", str(STORY), *words]) == 2
    assert message in capsys.readouterr().err


def test_no_lines_are_answered_by_none_without_a_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("\n")
    flags = ["-i", str(source), "-o", str(target), "--model", "/no/such"]
    assert main(["run-batch", *flags]) == 0
    assert target.read_bytes() == b""
    assert "0 lines" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--ssl-keyfile", "--port", "--api-key", "--disable-ui"])
def test_flags_of_connections_are_unknown(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["run-batch", "-i", "x", "-o", "y", "--model", "m", flag, "1"])
    assert stop.value.code == 2
    assert f"unrecognized arguments: {flag}" in capsys.readouterr().err
