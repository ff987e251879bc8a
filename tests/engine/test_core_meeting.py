"""Cores that share experts come to a meeting, and live and end as a group."""

from __future__ import annotations

import dataclasses
import os
import socket
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from tests.limits import HANG_S, wait_until
from vllm.config.vllm import VllmConfig
from vllm.engine.core_meeting import LOOPBACK, CoreMeeting, meeting_of, where_others_meet
from vllm.errors import ConfigError
from vllm.executor.handshake import introduction
from vllm.executor.nodes.link import Frame, Kind, Link, LinkClosed
from vllm.messages.core_group import CoreHello, CoreWelcome
from vllm.utils.machine import machine_id

SIZE = 3
WORD = "a word"
AT_ONCE_S = 0.0


@pytest.fixture
def copies(config: VllmConfig) -> VllmConfig:
    parallel = dataclasses.replace(
        config.parallel,
        data_parallel_size=SIZE,
        data_parallel_size_local=SIZE,
        pipeline_parallel_size=2,
        served_copies=SIZE,
    )
    return dataclasses.replace(config, parallel=parallel)


@pytest.fixture
def meeting(copies: VllmConfig) -> Iterator[CoreMeeting]:
    meeting = CoreMeeting(copies, LOOPBACK, word=WORD)
    try:
        yield meeting
    finally:
        meeting.close()


class Core:
    """A core at the meeting."""

    def __init__(self, meeting: CoreMeeting, config: VllmConfig, copy: int, **says: Any) -> None:
        word, _, at = meeting.at.partition("@")
        host, _, port = at.rpartition(":")
        self.link = Link(socket.create_connection((host, int(port))))
        hello = CoreHello(
            **{
                "copy": copy,
                "word": word,
                "owner": "one",
                "machine": machine_id(),
                "inbox": f"inbox {copy}",
                "rendezvous": "" if copy else "there",
                "settings": introduction(config),
                **says,
            }
        )
        self.link.put(Kind.HELLO, msgspec.msgpack.encode(hello))

    def frame(self) -> Frame:
        assert self.link.wait(HANG_S)
        (frame,) = self.link.frames()
        return frame

    def welcome(self) -> CoreWelcome:
        frame = self.frame()
        assert frame.kind is Kind.WELCOME, frame
        return msgspec.msgpack.decode(frame.payload, type=CoreWelcome)

    def hears(self, kind: Kind) -> str:
        frame = self.frame()
        assert frame.kind is kind, frame
        return frame.payload.decode()

    def is_closed(self) -> bool:
        try:
            return self.link.wait(AT_ONCE_S) and not self.link.frames()
        except LinkClosed:
            return True


def test_cores_hear_of_each_other_once_all_have_come(
    meeting: CoreMeeting, copies: VllmConfig
) -> None:
    first = [Core(meeting, copies, copy) for copy in (2, 0)]
    assert not any(core.link.wait(AT_ONCE_S) for core in first)
    cores = [*first, Core(meeting, copies, 1)]
    welcomes = [core.welcome() for core in cores]
    assert welcomes[0] == welcomes[1] == welcomes[2]
    assert welcomes[0].group == 1
    assert welcomes[0].inboxes == ("inbox 0", "inbox 1", "inbox 2")
    assert welcomes[0].rendezvous == "there"
    assert len({*welcomes[0].memory}) == 2, "of each stage"
    for path in welcomes[0].memory:
        os.truncate(path, 100)


@pytest.mark.parametrize("machine", ["another one", ""])
def test_cores_of_several_machines_share_no_memory(
    meeting: CoreMeeting, copies: VllmConfig, machine: str
) -> None:
    cores = [Core(meeting, copies, 0), Core(meeting, copies, 1)]
    cores.append(Core(meeting, copies, 2, machine=machine))
    assert [core.welcome().memory for core in cores] == [()] * SIZE


def test_the_end_of_one_is_told_to_the_others_and_all_meet_again(
    meeting: CoreMeeting, copies: VllmConfig
) -> None:
    cores = [Core(meeting, copies, copy) for copy in range(SIZE)]
    for core in cores:
        core.welcome()
    cores[1].link.close()
    for survivor in (cores[0], cores[2]):
        text = survivor.hears(Kind.FAULT)
        assert text == "engine core 1, with which it shares experts, ended"
        wait_until(survivor.is_closed, "the end of the link")
    cores = [Core(meeting, copies, copy) for copy in range(SIZE)]
    assert [core.welcome().group for core in cores] == [2] * SIZE


def test_a_core_that_ends_before_all_are_there_is_waited_for(
    meeting: CoreMeeting, copies: VllmConfig
) -> None:
    first, second = Core(meeting, copies, 0), Core(meeting, copies, 1)
    second.link.close()
    second = Core(meeting, copies, 1)
    assert not first.link.wait(AT_ONCE_S)
    third = Core(meeting, copies, 2)
    assert [core.welcome().group for core in (first, second, third)] == [1] * SIZE


def test_a_core_that_comes_again_ends_the_group_of_its_last_life(
    meeting: CoreMeeting, copies: VllmConfig
) -> None:
    """Its end was not seen, as when its machine has lost its cable for a while."""
    cores = [Core(meeting, copies, copy) for copy in range(SIZE)]
    for core in cores:
        core.welcome()
    again = Core(meeting, copies, 1)
    for survivor in (cores[0], cores[2]):
        assert "engine core 1" in survivor.hears(Kind.FAULT)
    wait_until(cores[1].is_closed, "the end of the link of the last life")
    others = [Core(meeting, copies, copy) for copy in (0, 2)]
    assert [core.welcome().group for core in (again, *others)] == [2] * SIZE


def test_all_are_told_to_end_once_all_agree(meeting: CoreMeeting, copies: VllmConfig) -> None:
    cores = [Core(meeting, copies, copy) for copy in range(SIZE)]
    for core in cores:
        core.welcome()
    for core in cores[:2]:
        core.link.put(Kind.STOP)
    assert not cores[0].link.wait(AT_ONCE_S)
    cores[2].link.put(Kind.STOP)
    for core in cores:
        core.hears(Kind.STOP)
    again = [Core(meeting, copies, copy) for copy in range(SIZE)]
    assert [core.welcome().group for core in again] == [2] * SIZE


def test_no_core_is_told_of_ends_that_are_expected(
    meeting: CoreMeeting, copies: VllmConfig
) -> None:
    cores = [Core(meeting, copies, copy) for copy in range(SIZE)]
    for core in cores:
        core.welcome()
    meeting.expect_end()
    cores[0].link.close()
    assert not cores[1].link.wait(AT_ONCE_S)
    meeting.close()
    wait_until(cores[1].is_closed, "the end of the link")


@pytest.mark.parametrize(
    ("copy", "says", "why"),
    [
        (1, {"word": "wrong"}, "it does not know the word"),
        (SIZE, {}, "copies are numbered from 0, and there are 3"),
        (-1, {}, "copies are numbered from 0, and there are 3"),
        (0, {"owner": "two"}, "copy 0 of the model is there already, from 127.0.0.1"),
    ],
    ids=["word", "too high", "negative", "taken"],
)
def test_a_core_that_is_wrong_here_is_refused_and_the_others_are_not(
    meeting: CoreMeeting, copies: VllmConfig, copy: int, says: dict[str, Any], why: str
) -> None:
    first = Core(meeting, copies, 0)
    wait_until(lambda: meeting._members, "the first core")
    assert why in Core(meeting, copies, copy, **says).hears(Kind.REFUSED)
    others = [Core(meeting, copies, copy) for copy in (1, 2)]
    assert [core.welcome().group for core in (first, *others)] == [1] * SIZE


def test_a_core_with_other_settings_is_refused_with_their_name(
    meeting: CoreMeeting, copies: VllmConfig
) -> None:
    model = dataclasses.replace(copies.model, seed=copies.model.seed + 1)
    other = dataclasses.replace(copies, model=model)
    why = Core(meeting, other, 1).hears(Kind.REFUSED)
    assert "copy 1 runs with other settings than copy 0: the model settings" in why


def test_strangers_are_shown_out(meeting: CoreMeeting) -> None:
    host, _, port = meeting.at.partition("@")[2].rpartition(":")
    for data in (b"GET / HTTP/1.1\r\n\r\n" * 4, b""):
        with socket.create_connection((host, int(port))) as stranger:
            stranger.settimeout(HANG_S)
            stranger.sendall(data)
            stranger.shutdown(socket.SHUT_WR)
            assert stranger.recv(100) == b""


@pytest.mark.parametrize("host", ["127.0.0.1", "10.255.255.1"])
def test_a_meeting_that_cannot_be_held_is_an_error(copies: VllmConfig, host: str) -> None:
    with socket.create_server((LOOPBACK, 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"{host} --data-parallel-rpc-port {port}: copies"):
            CoreMeeting(copies, host, port)


def test_who_holds_the_meeting(copies: VllmConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    assert meeting_of(copies) is None and where_others_meet(copies) == ""
    monkeypatch.setattr(VllmConfig, "spreads_experts", True)
    own = meeting_of(copies)
    assert own is not None
    own.close()
    word, _, at = own.at.partition("@")
    assert len(word) == 32 and at.startswith("127.0.0.1:")
    parallel = dataclasses.replace(
        copies.parallel, data_parallel_start_rank=1, data_parallel_rank=1, served_copies=1
    )
    elsewhere = dataclasses.replace(copies, parallel=parallel)
    assert meeting_of(elsewhere) is None
    assert where_others_meet(elsewhere) == "@127.0.0.1:29550"
