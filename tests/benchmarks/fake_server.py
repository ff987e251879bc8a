"""A server in a thread that answers at once: what clients make of answers is tested against it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.limits import HANG_S

BOS = 0


class WordCodec:
    """A token per word `w<id>`; a prompt starts with BOS."""

    def encode(self, text: str) -> list[int]:
        return [BOS, *self.encode_plain(text)]

    def encode_plain(self, text: str) -> list[int]:
        return [int(word[1:]) if word[1:].isdecimal() else 1 + len(word) for word in text.split()]

    def decode(self, token_ids: Any) -> str:
        return " ".join(f"w{token}" for token in token_ids)


@dataclass
class FakeServer:
    """`seen` holds method, path, headers and body of every request, in the order of arrival."""

    url: str = ""
    model: str = "fake"
    key: str = ""
    words: list[str] = field(default_factory=lambda: ["once ", "upon ", "a ", "time"])
    sends_usage: bool = True
    fails_when: str = ""  # part of a body that makes it an error
    num_loading: int = 0  # so many requests are answered 503
    profiles: bool = True  # POST /start_profile and /stop_profile are answered
    stalls: threading.Event | None = None  # streams stop after a word until it is set
    seen: list[tuple[str, str, dict[str, str], Any]] = field(default_factory=list)

    def generated(self) -> list[Any]:
        return [body for method, path, _, body in self.seen if "completions" in path]


@contextmanager
def fake_server(**values: Any) -> Iterator[FakeServer]:
    fake = FakeServer(**values)
    http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(fake))
    http.daemon_threads = True
    fake.url = f"http://127.0.0.1:{http.server_address[1]}"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield fake
    finally:
        if fake.stalls is not None:
            fake.stalls.set()
        http.shutdown()
        thread.join()
        http.server_close()


def _handler(fake: FakeServer) -> type[BaseHTTPRequestHandler]:
    codec = WordCodec()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # else every second write waits for an acknowledgement

        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            self._answer(None)

        def do_POST(self) -> None:
            self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"])) or "null"))

        def _answer(self, body: Any) -> None:
            fake.seen.append((self.command, self.path, dict(self.headers), body))
            if fake.key and self.headers["Authorization"] != f"Bearer {fake.key}":
                self._json(401, {"error": {"message": "a key is needed"}})
            elif fake.num_loading:
                fake.num_loading -= 1
                self._json(503, {"error": {"message": "loading"}})
            elif self.path == "/v1/models":
                self._json(200, {"data": [{"id": fake.model}]})
            elif self.path == "/tokenize":
                special = body.get("add_special_tokens", True)
                encode = codec.encode if special else codec.encode_plain
                self._json(200, {"tokens": encode(body["prompt"])})
            elif self.path == "/detokenize":
                self._json(200, {"prompt": codec.decode(body["tokens"])})
            elif fake.fails_when and fake.fails_when in json.dumps(body):
                self._json(400, {"error": {"message": "refused"}})
            elif self.path.endswith("_profile"):
                self._json(200 if fake.profiles else 400, {})
            elif self.path.endswith("/completions"):
                self._stream(body)
            else:
                self._json(404, {"error": {"message": "Not Found"}})

        def _stream(self, body: Any) -> None:
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            is_chat = "messages" in body
            limit = body.get("max_completion_tokens") or body.get("max_tokens") or 4
            words = [fake.words[i % len(fake.words)] for i in range(limit)]
            if is_chat:
                self._event({"choices": [{"delta": {"role": "assistant", "content": ""}}]})
            for word in words:
                choice = {"delta": {"content": word}} if is_chat else {"text": word}
                self._event({"choices": [choice]})
                if fake.stalls is not None:
                    fake.stalls.wait(HANG_S)
            if fake.sends_usage:
                text = body["messages"][-1]["content"] if is_chat else body["prompt"]
                count = len(codec.encode(text)) if isinstance(text, str) else len(text)
                usage = {"prompt_tokens": count, "completion_tokens": len(words)}
                self._event({"choices": [], "usage": usage})
            self._chunk(b"data: [DONE]\n\n")
            self._chunk(b"")

        def _event(self, event: Any) -> None:
            self._chunk(b"data: " + json.dumps(event).encode() + b"\n\n")

        def _chunk(self, data: bytes) -> None:
            try:
                self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
                self.wfile.flush()
            except OSError:
                self.close_connection = True

        def _json(self, status: int, value: Any) -> None:
            data = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    return Handler
