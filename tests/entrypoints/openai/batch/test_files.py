from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from vllm.entrypoints.openai.batch import files
from vllm.errors import ConfigError


@contextmanager
def storage(*statuses: int) -> Iterator[tuple[str, dict[str, bytes]]]:
    """An HTTP server that keeps what is PUT; it answers with `statuses` first."""
    kept: dict[str, bytes] = {"/in.jsonl": b"\xef\xbb\xbfone\n\ntwo\xe2\x80\xa8\n"}
    pending = list(statuses)

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            self._answer(200 if self.path in kept else 404, kept.get(self.path, b""))

        def do_PUT(self) -> None:
            data = self.rfile.read(int(self.headers["Content-Length"]))
            status = pending.pop(0) if pending else 200
            if status == 200:
                kept[self.path] = data
            self._answer(status, b"")

        def _answer(self, status: int, data: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    http = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{http.server_address[1]}", kept
    finally:
        http.shutdown()
        thread.join()
        http.server_close()


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "FIRST_PAUSE_S", 0.0)


def test_lines_come_from_a_path_or_a_url(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text("one\r\n\n two \n")
    assert [text.strip() for text in files.read_lines(str(path))] == ["one", "two"]
    with storage() as (url, _):
        assert files.read_lines(f"{url}/in.jsonl") == ["one", "two\u2028"]
        with pytest.raises(ConfigError, match="404"):
            files.read_lines(f"{url}/none.jsonl")


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xff\xfe"])
def test_a_file_without_lines_or_text_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="--input-file"):
        files.read_lines(str(path))
    with pytest.raises(ConfigError, match="/no/such: No such file"):
        files.read_lines("/no/such")


def test_answers_go_to_a_path_or_are_sent_to_a_url(tmp_path: Path) -> None:
    with files.output(str(tmp_path / "out"), "") as file:
        file.write("x\n")
    assert (tmp_path / "out").read_text() == "x\n"
    with storage(500, 503) as (url, kept):
        with files.output(f"{url}/out.jsonl", str(tmp_path)) as file:
            file.write("y\n")
        assert kept["/out.jsonl"] == b"y\n"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_answers_that_cannot_be_sent_are_kept(tmp_path: Path) -> None:
    refusal = pytest.raises(ConfigError, match="The answers are in")
    with (
        storage(*[500] * files.ATTEMPTS) as (url, _),
        refusal,
        files.output(f"{url}/out.jsonl", str(tmp_path)) as file,
    ):
        file.write("y\n")
    (kept,) = tmp_path.iterdir()
    assert kept.read_text() == "y\n"


def test_a_place_that_does_not_exist_is_refused() -> None:
    with (
        pytest.raises(ConfigError, match="--output-file /no/such/out"),
        files.output("/no/such/out", ""),
    ):
        pass
    with (
        pytest.raises(ConfigError, match="--output-tmp-dir /no/such"),
        files.output("http://127.0.0.1:1/x", "/no/such"),
    ):
        pass
