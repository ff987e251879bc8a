"""Models by name: fetched from a hub (a small one of our own here), then found in the cache."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LOCATE = """
import sys
from vllm.transformers_utils.hub import Source, locate, weight_patterns
source = Source(sys.argv[1], "--model", ignore=("original/*",))
path = locate(source, weight_patterns("auto"))
print(*sorted(str(p.relative_to(path)) for p in path.rglob("*") if p.is_file()))
"""


def _digest(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


class Hub(BaseHTTPRequestHandler):
    """The requests that fetching a snapshot makes, for one model `org/name`."""

    files: ClassVar[dict[str, bytes]] = {}

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, with_body: bool) -> None:
        path = self.path.partition("?")[0]
        resolved = f"/org/name/resolve/{COMMIT}/"
        if path == "/":
            self.send(b"hub", {}, with_body)
        elif path.startswith("/api/models/org/name/tree/"):
            tree = [
                {"type": "file", "path": name, "size": len(data), "oid": _digest(data)}
                for name, data in self.files.items()
            ]
            self.send(json.dumps(tree).encode(), {"Content-Type": "application/json"}, with_body)
        elif path.startswith("/api/models/org/name"):
            info: dict[str, Any] = {"id": "org/name", "sha": COMMIT, "private": False}
            info["siblings"] = [{"rfilename": name} for name in self.files]
            self.send(json.dumps(info).encode(), {"Content-Type": "application/json"}, with_body)
        elif path.startswith(resolved) and path.removeprefix(resolved) in self.files:
            data = self.files[path.removeprefix(resolved)]
            self.send(data, {"ETag": f'"{_digest(data)}"', "X-Repo-Commit": COMMIT}, with_body)
        else:
            self.send(b"{}", {"X-Error-Code": "RepoNotFound"}, with_body, status=404)

    def send(
        self, data: bytes, headers: dict[str, str], with_body: bool, status: int = 200
    ) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[tuple[str, dict[str, bytes]]]:
    """Address of a running hub, and the files of its model."""
    Hub.files = {"config.json": b"{}", "tokenizer.json": b"{}", "original/a.json": b"{}"}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", Hub.files
    server.shutdown()
    thread.join()
    server.server_close()


def run(endpoint: str, cache: Path, name: str, **env: str) -> subprocess.CompletedProcess[str]:
    # huggingface_hub reads its variables when it is imported, hence a process of its own.
    mine = {"HF_ENDPOINT": endpoint, "HF_HUB_CACHE": str(cache), "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-c", LOCATE, name]
    everything = {**os.environ, **mine, **env}
    return subprocess.run(command, env=everything, capture_output=True, text=True, check=False)


def test_model_is_fetched_once_and_then_found_in_the_cache(
    hub: tuple[str, dict[str, bytes]], tmp_path: Path
) -> None:
    endpoint, files = hub
    files["model.safetensors"] = b"weights"
    files["pytorch_model.bin"] = b"the same weights"

    first = run(endpoint, tmp_path, "org/name")
    assert first.stdout.split() == ["config.json", "model.safetensors", "tokenizer.json"], first

    offline = run("http://127.0.0.1:9", tmp_path, "org/name", HF_HUB_OFFLINE="1")
    assert offline.stdout == first.stdout, offline
    unreachable = run("http://127.0.0.1:9", tmp_path, "org/name")
    assert unreachable.stdout == first.stdout, unreachable
    assert "Using the cached org/name" in unreachable.stderr


def test_pickled_weights_are_fetched_if_there_are_no_others(
    hub: tuple[str, dict[str, bytes]], tmp_path: Path
) -> None:
    endpoint, files = hub
    files["pytorch_model.bin"] = b"weights"

    assert "pytorch_model.bin" in run(endpoint, tmp_path, "org/name").stdout.split()


def test_name_the_hub_does_not_know_is_an_error_with_its_answer(
    hub: tuple[str, dict[str, bytes]], tmp_path: Path
) -> None:
    done = run(hub[0], tmp_path, "org/other")

    assert done.returncode != 0
    assert "--model org/other: no such directory here" in done.stderr
    assert "refused it: 404" in done.stderr
