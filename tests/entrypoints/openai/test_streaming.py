"""Events of streams: chunks made from a template, and bodies framed without the protocol's help."""

from __future__ import annotations

import json

import pytest

from tests.entrypoints.openai.listening import listening
from tests.entrypoints.openai.sse import events_of
from tests.entrypoints.openai.test_transport import exchange
from vllm.entrypoints.openai.protocol.completion import CompletionChoice, CompletionResponse
from vllm.entrypoints.openai.streaming import EventTemplate, event
from vllm.entrypoints.openai.transport.protocol import is_chunked_response

TEXTS = ["", " a", '"', "\\n\n", "\u2028 é 漢 🦊", "\x00\x1f", "{", "text"]
PATH = "/v1/completions"


@pytest.mark.parametrize("text", TEXTS)
def test_a_template_makes_the_event_of_the_chunk(text: str) -> None:
    def chunk(text: str) -> CompletionResponse:
        choice = CompletionChoice(3, text, None, None)
        return CompletionResponse('text "x"', 7, "{model}", [choice])

    assert EventTemplate(chunk).event(text) == event(chunk(text))


@pytest.mark.parametrize(
    ("scope", "start", "is_chunked"),
    [
        ({}, {}, True),
        ({"http_version": "1.0"}, {}, False),
        ({"method": "HEAD"}, {}, False),
        ({"type": "lifespan"}, {}, False),
        ({}, {"status": 204}, False),
        ({}, {"status": 304}, False),
        ({}, {"headers": [(b"Content-Length", b"5")]}, False),
        ({}, {"headers": [(b"transfer-encoding", b"chunked")]}, False),
        ({}, {"type": "http.response.body", "body": b"x"}, False),
    ],
)
def test_which_bodies_go_out_in_chunks(scope: dict, start: dict, is_chunked: bool) -> None:
    scope = {"type": "http", "http_version": "1.1", "method": "POST", **scope}
    start = {"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")], **start}
    assert is_chunked_response(scope, start) is is_chunked


def raw(version: str, **body: object) -> bytes:
    data = json.dumps({"prompt": "Once", "max_tokens": 5, "stream": True, **body}).encode()
    head = f"POST {PATH} HTTP/{version}\r\nHost: a\r\nConnection: close\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    return head.encode() + data


def without_frames(body: bytes) -> bytes:
    """The body of chunks, each with its length before it; the last has none."""
    found = b""
    while True:
        length, _, rest = body.partition(b"\r\n")
        size = int(length, 16)
        assert rest[size : size + 2] == b"\r\n", body
        if size == 0:
            assert rest == b"\r\n", "nothing follows the last chunk"
            return found
        found, body = found + rest[:size], rest[size + 2 :]


@pytest.mark.asyncio
async def test_a_stream_is_framed_as_its_version_of_the_protocol_says(make_app) -> None:
    async with listening(make_app) as served:
        heads, bodies = [], []
        for version in ("1.1", "1.0"):
            answer = await exchange(served, raw(version))
            start, _, body = answer.partition(b"\r\n\r\n")
            heads.append(start.lower())
            bodies.append(body)
        assert b"transfer-encoding: chunked" in heads[0]
        assert b"transfer-encoding" not in heads[1]
        some, others = events_of(without_frames(bodies[0]).decode()), events_of(bodies[1].decode())
        texts = [[e["choices"][0]["text"] for e in events] for events in (some, others)]
        assert texts[0] == texts[1] and len(texts[0]) == 5


@pytest.mark.asyncio
async def test_plain_chunks_have_the_fields_of_others(client) -> None:
    async def chunks(**body: object) -> list[dict]:
        response = await client.post(PATH, json={"prompt": ["Once", "a b"], "stream": True, **body})
        return events_of(response.text)

    plain = await chunks(max_tokens=6, n=2)
    full = await chunks(max_tokens=6, n=2, return_token_ids=True)

    def told(chunks: list[dict]) -> list[dict]:
        choices = [chunk["choices"][0] for chunk in chunks]
        for choice in choices:
            choice.pop("token_ids", None)
            choice.pop("prompt_token_ids", None)
        return sorted(choices, key=lambda choice: choice["index"])

    assert [c.keys() for c in plain] == [c.keys() for c in full]
    assert told(plain) == told(full)
