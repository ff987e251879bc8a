from __future__ import annotations

import errno
import os
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


BATCH = [b"model", b"line 1", b"line 2"]
GOOD, BAD = '{"error": null}\n', '{"error": {}}\n'


def test_lines_come_from_a_path_or_a_url(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"one\r\n\n two \n\xff\n")
    assert [data.strip() for data in files.read_lines(str(path))] == [b"one", b"two", b"\xff"]
    with storage() as (url, _):
        assert files.read_lines(f"{url}/in.jsonl") == [b"one", "two\u2028".encode()]
        with pytest.raises(ConfigError, match="404"):
            files.read_lines(f"{url}/none.jsonl")


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xef\xbb\xbf"])
def test_a_file_may_have_no_lines(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(content)
    assert files.read_lines(str(path)) == []


def test_a_file_of_another_encoding_and_one_that_is_not_there_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text("one", encoding="utf-16")
    with pytest.raises(ConfigError, match="UTF-16"):
        files.read_lines(str(path))
    with pytest.raises(ConfigError, match="/no/such: No such file"):
        files.read_lines("/no/such")


def test_answers_go_to_a_path_or_are_sent_to_a_url(tmp_path: Path) -> None:
    with files.output(str(tmp_path / "out"), "", BATCH) as answers:
        answers.write("x\n")
    assert (tmp_path / "out").read_text() == "x\n"
    with storage(500, 503) as (url, kept):
        with files.output(f"{url}/out.jsonl", str(tmp_path), BATCH) as answers:
            answers.write("y\n")
        assert kept["/out.jsonl"] == b"y\n"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_answers_that_cannot_be_sent_are_kept_and_sent_by_the_next_run(tmp_path: Path) -> None:
    with storage(*[500] * files.ATTEMPTS) as (url, kept):
        with (
            pytest.raises(ConfigError, match="The answers are in"),
            files.output(f"{url}/out.jsonl", str(tmp_path), BATCH) as answers,
        ):
            answers.write(GOOD)
        (partial,) = tmp_path.iterdir()
        assert partial.read_text() == GOOD and partial.stat().st_mode & 0o077 == 0
        with files.output(f"{url}/out.jsonl", str(tmp_path), BATCH) as answers:
            assert answers.num_lines == 1
        assert kept["/out.jsonl"] == GOOD.encode()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("cut_off", ["", '{"error": nu', '{"error": null}', "\0\0\0\n"])
def test_a_run_that_was_cut_short_is_gone_on_with(tmp_path: Path, cut_off: str) -> None:
    target = tmp_path / "out"
    target.write_text("of another batch\n")
    with (
        pytest.raises(KeyboardInterrupt),
        files.output(str(target), "", BATCH) as answers,
    ):
        answers.write(GOOD)
        answers.write(BAD)
        answers.write(cut_off)
        raise KeyboardInterrupt
    assert target.read_text() == "of another batch\n"
    with files.output(str(target), "", [*BATCH, b"line 3"]) as answers:
        assert answers.num_lines == 0
        answers.write(BAD)
    assert target.read_text() == BAD
    with files.output(str(target), "", BATCH) as answers:
        assert (answers.num_lines, answers.num_failed) == (2, 1)
        answers.write(GOOD)
    assert target.read_text() == GOOD + BAD + GOOD
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_two_runs_do_not_write_one_file(tmp_path: Path) -> None:
    name = str(tmp_path / "out")
    with (
        files.output(name, "", BATCH) as answers,
        pytest.raises(ConfigError, match="another run writes"),
        files.output(name, "", BATCH),
    ):
        pass
    answers.close()
    assert (tmp_path / "out").exists()


def test_a_full_disk_is_one_line_that_says_what_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        pytest.raises(ConfigError, match="--output-file /dev/full: No space left on device"),
        files.output("/dev/full", "", BATCH) as answers,
    ):
        answers.write(GOOD)

    write, room = os.write, [3, 30]

    def until_full(fd: int, data: bytes) -> int:
        if not room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(fd, data[: room.pop(0)])

    monkeypatch.setattr(os, "write", until_full)
    refusal = pytest.raises(ConfigError, match=r"No space left.*\.partial has the first 1 answers")
    with refusal, files.output(str(tmp_path / "out"), "", BATCH) as answers:
        answers.write(GOOD)
        answers.write(GOOD)
    monkeypatch.undo()
    with files.output(str(tmp_path / "out"), "", BATCH) as answers:
        answers.write(BAD)
    assert (tmp_path / "out").read_text() == GOOD + BAD


def test_the_questions_are_not_written_over_by_whatever_name(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.write_text("kept")
    (tmp_path / "soft").symlink_to(source)
    (tmp_path / "hard").hardlink_to(source)
    for name in (source, tmp_path / "." / "in", tmp_path / "soft", tmp_path / "hard"):
        with pytest.raises(ConfigError, match="is the input file"):
            files.check_distinct(str(source), str(name))
    files.check_distinct(str(source), str(tmp_path / "out"))
    with pytest.raises(ConfigError, match="is the input file"):
        files.check_distinct("http://a/b", "http://a/b")


def test_a_link_is_written_through(tmp_path: Path) -> None:
    target = tmp_path / "out"
    (tmp_path / "link").symlink_to(target)
    with files.output(str(tmp_path / "link"), "", BATCH) as answers:
        answers.write(GOOD)
    assert (tmp_path / "link").is_symlink() and target.read_text() == GOOD


def test_a_place_that_does_not_exist_is_refused() -> None:
    with (
        pytest.raises(ConfigError, match="--output-file /no/such/out"),
        files.output("/no/such/out", "", BATCH),
    ):
        pass
    with (
        pytest.raises(ConfigError, match="--output-tmp-dir /no/such"),
        files.output("http://127.0.0.1:1/x", "/no/such", BATCH),
    ):
        pass
