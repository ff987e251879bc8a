"""A link between two nodes: frames arrive whole and in order, and its end shows after them."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from tests.limits import HANG_S
from vllm.executor.nodes.link import Frame, Kind, Link, LinkClosed


@pytest.fixture
def ends() -> Iterator[tuple[Link, Link]]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        here = Link(socket.create_connection(server.getsockname()))
        there = Link(server.accept()[0])
    yield here, there
    here.close()
    there.close()


def read(link: Link, count: int) -> list[Frame]:
    found: list[Frame] = []
    while len(found) < count:
        assert link.wait(HANG_S)
        found += link.frames()
    return found


def test_frames_of_any_size_arrive_in_order(ends: tuple[Link, Link]) -> None:
    here, there = ends
    payloads = [b"", b"x", bytes(9 << 20), b"last"]

    def send() -> None:
        for rank, payload in enumerate(payloads):
            here.put(Kind.REPLY, payload, rank)

    thread = threading.Thread(target=send)
    thread.start()
    frames = read(there, len(payloads))
    thread.join()
    assert [(f.kind, f.rank, f.payload) for f in frames] == [
        (Kind.REPLY, rank, payload) for rank, payload in enumerate(payloads)
    ]


def test_what_was_sent_before_the_end_is_read_first(ends: tuple[Link, Link]) -> None:
    here, there = ends
    here.put(Kind.FAULT, b"why")
    here.close()
    assert read(there, 1) == [Frame(Kind.FAULT, -1, b"why")]
    with pytest.raises(LinkClosed, match="the connection ended"):
        read(there, 1)


def test_a_writer_that_waits_may_give_up(ends: tuple[Link, Link]) -> None:
    def give_up() -> None:
        raise TimeoutError

    with pytest.raises(TimeoutError):
        ends[0].put(Kind.REQUEST, bytes(64 << 20), on_wait=give_up)


def test_frames_that_are_too_large_or_of_no_kind_end_the_link(ends: tuple[Link, Link]) -> None:
    here, there = ends
    there.most_bytes = 10
    here.put(Kind.HELLO, bytes(11))
    with pytest.raises(LinkClosed, match="of another program"):
        read(there, 1)


def test_last_words_arrive_though_the_reader_has_more_to_read(ends: tuple[Link, Link]) -> None:
    here, there = ends
    there.put(Kind.REQUEST, bytes(1000))  # unread, it would reset the connection on a close
    here.put(Kind.FAULT, b"why")
    thread = threading.Thread(target=here.finish, args=(HANG_S,))
    thread.start()
    assert read(there, 1)[0].payload == b"why"
    there.close()
    thread.join()
