import asyncio

import pytest

from vllm.utils.http_client import Server, ServerError

pytestmark = pytest.mark.asyncio


async def talk(reply: bytes, use):
    """Run `use(server)` against a socket that answers every request with `reply`."""
    requests = []

    async def answer(reader, writer):
        requests.append(await reader.readuntil(b"\r\n\r\n"))
        for i in range(0, len(reply), 7):
            writer.write(reply[i : i + 7])
            await writer.drain()
        writer.close()

    listener = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with listener:
        port = listener.sockets[0].getsockname()[1]
        return await use(Server.at(f"http://127.0.0.1:{port}/base", "key")), requests[0]


def chunked(*pieces: bytes) -> bytes:
    body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in (*pieces, b""))
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body


async def collect(server):
    return [event async for event in server.stream("/x", {})]


async def test_events_are_put_together_from_pieces():
    reply = chunked(b'data: {"a": 1}\n\nda', b'ta: {"a": 2}\n', b"\ndata: [DONE]\n\n")
    events, request = await talk(reply, collect)
    assert events == [{"a": 1}, {"a": 2}]
    assert request.startswith(b"POST /base/x HTTP/1.1\r\n")
    assert b"Authorization: Bearer key\r\n" in request


@pytest.mark.parametrize(
    "reply",
    [
        chunked(b'data: {"a": 1}\n\n'),
        chunked(b'data: {"error": {"message": "no"}}\n\n', b"data: [DONE]\n\n"),
        chunked(b'data: {"error": "no"}\n\n', b"data: [DONE]\n\n"),
        chunked(b"data: [1]\n\n", b"data: [DONE]\n\n"),
        b"HTTP/1.1 400 Bad Request\r\nContent-Length: 2\r\n\r\nno",
        b"220 mail server ready\r\n\r\n",
        b"HTTP/1.1\r\n\r\n",
    ],
)
async def test_a_stream_that_fails_is_an_error(reply):
    with pytest.raises(ServerError):
        await talk(reply, collect)


async def test_a_json_answer_is_read_whole():
    async def get(server):
        return await server.get("/x")

    answer, _ = await talk(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n[1, 23]", get)
    assert answer == [1, 23]


@pytest.mark.parametrize("url", ["ftp://x", "nonsense", "http://"])
async def test_a_wrong_url_is_refused(url):
    with pytest.raises(ValueError, match="URL"):
        Server.at(url)
