"""A running examples/deploy/ray_serve.py, and what its clients see."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from typing import Any

from tests.engine_e2e.ray_cluster import ROOT
from tests.engine_e2e.test_rank_faults import MARK, marked
from tests.limits import HANG_S, wait_until
from vllm.utils.network_utils import get_open_port

MODEL = "examples/models/tiny-story"
NUM_TOKENS = 24


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    replica: str
    body: Any


@dataclass(frozen=True, slots=True)
class Service:
    """A running example. `mark` is in the environment of its engines' processes."""

    port: int
    mark: str

    def connection(self) -> HTTPConnection:
        return HTTPConnection("127.0.0.1", self.port, timeout=HANG_S)

    def open(
        self, connection: HTTPConnection, path: str, body: dict[str, Any] | None, session: str = ""
    ) -> Any:
        headers = {"content-type": "application/json"} | (
            {"x-session-id": session} if session else {}
        )
        text = None if body is None else json.dumps(body)
        connection.request("GET" if body is None else "POST", path, text, headers)
        return connection.getresponse()

    def ask(self, path: str, body: dict[str, Any] | None = None, session: str = "") -> Answer:
        connection = self.connection()
        try:
            response = self.open(connection, path, body, session)
            text = response.read()
            is_json = "json" in response.headers.get("content-type", "")
            value = json.loads(text) if is_json else text.decode()
            return Answer(response.status, response.headers.get("x-replica", ""), value)
        finally:
            connection.close()

    def complete(self, session: str = "", **more: Any) -> Answer:
        body = {"prompt": "Once upon a time", "max_tokens": NUM_TOKENS, "temperature": 0, **more}
        return self.ask("/v1/completions", body, session)

    def sessions(self, count: int) -> dict[str, str]:
        """A session for each of so many replicas. Returns when these are there."""
        found: dict[str, str] = {}

        def have_come() -> bool:
            session = uuid.uuid4().hex
            answer = self.ask("/v1/models", session=session)
            assert answer.status == 200, answer
            found.setdefault(answer.replica, session)
            return len(found) >= count

        wait_until(have_come, f"{count} replicas")
        return found


def stop(process: subprocess.Popen[bytes], mark: str) -> None:
    process.send_signal(signal.SIGINT)
    try:
        process.wait(timeout=HANG_S)
    finally:
        process.kill()
        process.wait()
    wait_until(lambda: not marked(mark), "the end of all engines")


@contextmanager
def deployed(
    flags: Sequence[str], environment: Mapping[str, str], replicas: int
) -> Iterator[Service]:
    """The program, with so many replicas; `environment` has a mark. No engine is left of it."""
    port = get_open_port()
    address = ["--http-host=127.0.0.1", f"--http-port={port}"]
    process = subprocess.Popen(
        [sys.executable, "examples/deploy/ray_serve.py", MODEL, *address, *flags],
        cwd=ROOT,
        env=dict(environment),
    )
    mark = environment[MARK]
    try:
        found = Service(port, mark)

        def is_up() -> bool:
            assert process.poll() is None, "the example ended"
            try:
                return found.ask("/health").status == 200
            except OSError:
                return False

        wait_until(is_up, "the server")
        found.sessions(replicas)
        yield found
    finally:
        stop(process, mark)
