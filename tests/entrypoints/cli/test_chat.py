"""`vllm chat` and `vllm complete`, against a fake server."""

from __future__ import annotations

import io
import os
import pty
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.benchmarks.fake_server import FakeServer, fake_server
from tests.limits import HANG_S
from vllm.entrypoints.cli.chat import _Words
from vllm.entrypoints.cli.client import lines
from vllm.entrypoints.cli.main import main


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with fake_server() as fake:
        yield fake


def talk(server: FakeServer, command: str, *words: str) -> int:
    return main([command, "--url", f"{server.url}/v1", *words])


def test_quick_prints_one_answer(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert talk(server, "chat", "-q", "hello", "--system-prompt", "Be kind.") == 0
    assert capsys.readouterr().out == "once upon a time\n"
    (body,) = server.generated()
    assert body == {
        "model": "fake",
        "messages": [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": "hello"},
        ],
        "stream": True,
    }


def test_piped_lines_are_a_conversation(
    server: FakeServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("first\n\n/second\n"))
    assert talk(server, "chat", "--max-tokens", "2") == 0
    assert capsys.readouterr().out == "once upon \nonce upon \n"
    messages = server.generated()[1]["messages"]
    assert [m["content"] for m in messages] == ["first", "once upon ", "/second"]


def test_complete_sends_prompts_alone(
    server: FakeServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("two\nlines\n"))
    assert talk(server, "complete", "-q", "-", "--max-tokens", "1", "--temperature", "0") == 0
    (body,) = server.generated()
    assert body["prompt"] == "two\nlines\n" and body["max_tokens"] == 1
    assert body["temperature"] == 0
    assert capsys.readouterr().out == "once \n"


def test_a_key_comes_from_the_flag_or_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_server(key="k") as server:
        assert talk(server, "complete", "-q", "x", "--api-key", "k") == 0
        monkeypatch.setenv("OPENAI_API_KEY", "k")
        assert talk(server, "complete", "-q", "x") == 0
        monkeypatch.setenv("VLLM_API_KEY", "other")
        assert talk(server, "complete", "-q", "x") == 2


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://127.0.0.1:1/v1", "Start one with `vllm serve MODEL`"),
        ("{}", "The URL of a server ends in /v1"),
        ("nonsense", "--url: 'nonsense' is not"),
    ],
)
def test_a_server_that_is_not_there_is_explained(
    server: FakeServer, capsys: pytest.CaptureFixture[str], url: str, message: str
) -> None:
    assert main(["chat", "-q", "x", "--url", url.format(server.url)]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_a_refused_request_is_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    with fake_server(fails_when="messages") as server:
        assert talk(server, "chat", "-q", "x") == 2
    assert "no answer: POST /chat/completions: status 400" in capsys.readouterr().err


def test_thoughts_are_shown_and_not_remembered() -> None:
    words = _Words()
    deltas: list[dict[str, Any]] = [{"reasoning_content": "hm"}, {"content": "yes"}, {}]
    shown = "".join(words.of({"delta": delta}) for delta in deltas)
    assert shown == "hm\nyes" and "".join(words.content) == "yes"


def test_ctrl_c_discards_a_line_and_ctrl_d_ends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = iter([KeyboardInterrupt(), "hello", EOFError()])

    def fake_input(prompt: str) -> str:
        item = next(typed)
        if isinstance(item, str):
            return item
        raise item

    monkeypatch.setattr("builtins.input", fake_input)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    assert list(lines()) == ["hello"]
    assert "Ctrl-D or /exit ends" in capsys.readouterr().out


class Terminal:
    """`vllm chat` with a terminal in front of it."""

    def __init__(self, *words: str) -> None:
        self.screen, child = pty.openpty()
        command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "chat", *words]
        # Of a shell that runs tests in the background, programs inherit that Ctrl-C is ignored.
        handler = signal.signal(signal.SIGINT, signal.default_int_handler)
        self.process = subprocess.Popen(
            command,
            stdin=child,
            stdout=child,
            stderr=child,
            env={**os.environ, "TERM": "dumb"},
        )
        signal.signal(signal.SIGINT, handler)
        os.close(child)
        self.text = ""

    def type(self, text: str) -> None:
        os.write(self.screen, text.encode())

    def wait_for(self, pattern: str) -> None:
        """Until what was shown since the last wait matches."""
        deadline_s = time.monotonic() + HANG_S
        while not (match := re.search(pattern, self.text)):
            assert time.monotonic() < deadline_s, f"{pattern!r} is not in {self.text!r}"
            if select.select([self.screen], [], [], 0.2)[0]:
                self.text += os.read(self.screen, 4096).decode()
        self.text = self.text[match.end() :]


@pytest.fixture
def stalled() -> Iterator[FakeServer]:
    with fake_server(stalls=threading.Event()) as fake:
        yield fake


def test_ctrl_c_stops_an_answer_and_the_conversation_goes_on(stalled: FakeServer) -> None:
    terminal = Terminal("--url", f"{stalled.url}/v1")
    try:
        terminal.wait_for("> ")
        terminal.type("hello\n")
        terminal.wait_for("once ")
        terminal.process.send_signal(signal.SIGINT)
        terminal.wait_for(r"stopped[^>]*> ")
        assert stalled.stalls is not None
        stalled.stalls.set()
        terminal.type("more\n")
        terminal.wait_for("once upon a time[^>]*> ")
        contents = [m["content"] for m in stalled.generated()[1]["messages"]]
        assert contents == ["hello", "once ", "more"]
        terminal.type("/system Be brief.\n")
        terminal.wait_for("> ")
        terminal.type("again\n")
        terminal.wait_for("once upon a time[^>]*> ")
        contents = [m["content"] for m in stalled.generated()[2]["messages"]]
        assert contents == ["Be brief.", "again"]
        terminal.type("/exit\n")
        assert terminal.process.wait(HANG_S) == 0
    finally:
        terminal.process.kill()
        terminal.process.wait()
        os.close(terminal.screen)
