"""Clients that do not speak HTTP as they should."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from tests.entrypoints.openai.real_server import RealServer
from tests.limits import HANG_S

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("unharmed")]
BODY = json.dumps({"prompt": "Once", "max_tokens": 2}).encode()
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
REQUEST = HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
LONG = json.dumps(
    {"prompt": "Once", "max_tokens": 900, "ignore_eos": True, "stream": True, "n": 4}
).encode()


@pytest.fixture
def connection(server: RealServer) -> Iterator[socket.socket]:
    with connected(server) as made:
        yield made


@contextlib.contextmanager
def connected(server: RealServer) -> Iterator[socket.socket]:
    parts = urlsplit(server.url)
    with socket.create_connection((parts.hostname, parts.port), timeout=HANG_S) as made:
        yield made


def until_closed(connection: socket.socket) -> bytes:
    """Everything that comes until the server closes; a time-out is a hang."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while data := connection.recv(65536):
            received += data
    return received


@pytest.mark.parametrize(
    "data",
    [
        b"\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 100,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET http://[ HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n" + b"\0" * 1000,
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
        HEAD + b"Content-Length: -5\r\n\r\n",
        HEAD + b"Content-Length: 99999999999999999999\r\n\r\n{}",
        HEAD + b"Content-Length: 2\r\nContent-Length: 5\r\n\r\n{}",
        HEAD + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n{}",
        HEAD + b"X-A: a\r\n b\r\nX-B : c\r\n\r\n",
        HEAD + b"X-Request-Id: a\r\nX-Request-Id: b\nEvil: 1\r\nContent-Length: 2\r\n\r\n{}",
    ],
    ids=range(17),
)
def test_what_is_no_request_is_answered_or_cut_off(connection: socket.socket, data: bytes) -> None:
    connection.sendall(data)
    connection.shutdown(socket.SHUT_WR)
    received = until_closed(connection)
    assert not received or received.split()[1] < b"500", received[:200]


def test_a_body_that_pauses_is_cut_off(connection: socket.socket) -> None:
    connection.sendall(REQUEST[:-5])
    assert b" 408 " in until_closed(connection)[:20]


def test_headers_that_pause_are_cut_off(connection: socket.socket) -> None:
    connection.sendall(HEAD)
    received = until_closed(connection)
    assert not received or b" 408 " in received[:20]


def test_a_client_that_only_reads_on_gets_its_answer(connection: socket.socket) -> None:
    connection.sendall(REQUEST.replace(b"Host: a", b"Host: a\r\nConnection: close"))
    connection.shutdown(socket.SHUT_WR)
    received = until_closed(connection)
    # Half a close is a whole one for the server: it may have ended the request.
    assert not received or received.startswith(b"HTTP/1.1 ")
    assert b" 500 " not in received[:20]


def test_pipelined_requests_are_answered_in_order(connection: socket.socket) -> None:
    last = REQUEST.replace(b"Host: a", b"Host: a\r\nConnection: close")
    connection.sendall(REQUEST * 4 + last)
    assert until_closed(connection).count(b"HTTP/1.1 200") == 5


def test_clients_that_go_away_leave_nothing_behind(server: RealServer) -> None:
    request = HEAD + b"Content-Length: %d\r\n\r\n" % len(LONG) + LONG
    for pause_s in (0.0, 0.05, 0.1, 0.2):
        with connected(server) as connection:
            connection.sendall(request)
            time.sleep(pause_s)
    # The fixture waits until nothing of them runs.
