"""Interfaces that the user names must exist."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest

from vllm.distributed.groups import Group
from vllm.distributed.place import Place
from vllm.errors import ConfigError
from vllm.platforms.hpu.interfaces import (
    check_interfaces,
    interface_of,
    loopback,
    prepare_host_groups,
)
from vllm.platforms.hpu.platform import HpuPlatform

LOOPBACK = loopback()


@pytest.fixture(autouse=True)
def _unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GLOO_SOCKET_IFNAME", "HCCL_SOCKET_IFNAME"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("variable", ["GLOO_SOCKET_IFNAME", "HCCL_SOCKET_IFNAME"])
def test_an_interface_that_is_not_there_is_named_beside_those_that_are(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_interfaces()
    monkeypatch.setenv(variable, f"{LOOPBACK},wrong7")
    with pytest.raises(ConfigError) as caught:
        check_interfaces()
    assert f"{variable}={LOOPBACK},wrong7" in str(caught.value)
    assert "no network interface 'wrong7'" in str(caught.value)
    assert all(name in str(caught.value) for _, name in socket.if_nameindex())
    monkeypatch.setenv(variable, str(LOOPBACK))
    check_interfaces()


def test_hccl_takes_how_a_name_begins_and_gloo_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    begins = str(LOOPBACK)[:-1]
    assert begins and begins not in [name for _, name in socket.if_nameindex()]
    monkeypatch.setenv("HCCL_SOCKET_IFNAME", begins)
    check_interfaces()
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", begins)
    with pytest.raises(ConfigError, match="GLOO_SOCKET_IFNAME"):
        check_interfaces()


def test_a_node_with_one_rank_of_several_is_told_of_an_interface_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HCCL_SOCKET_IFNAME", "wrong7")
    config: Any = SimpleNamespace(parallel=SimpleNamespace(world_size=2))
    with pytest.raises(ConfigError, match="HCCL_SOCKET_IFNAME=wrong7"), ExitStack() as stack:
        stack.enter_context(HpuPlatform().devices(config, [0]))


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_an_interface_is_found_by_its_address(address: str) -> None:
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            pytest.skip(f"this machine has no address {address}")
    assert interface_of(address) == LOOPBACK


@pytest.mark.parametrize("address", ["192.0.2.77", "2001:db8::77", "localhost", ""])
def test_no_interface_has_an_address_of_another_machine(address: str) -> None:
    assert interface_of(address) is None


@pytest.mark.parametrize(
    ("rendezvous", "gloo", "expected"),
    [
        ("/proc/1/fd/3", None, (LOOPBACK, None)),
        ("/proc/1/fd/3", "eth9", ("eth9", None)),
        ("10.0.0.1:29500", None, (None, LOOPBACK)),  # that of the place's address
        ("10.0.0.1:29500", "eth9", ("eth9", "eth9")),
    ],
)
def test_ranks_of_one_machine_meet_over_the_loopback_and_others_where_their_address_is(
    rendezvous: str,
    gloo: str | None,
    expected: tuple[str | None, str | None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Set first, so that what the code sets is taken back.
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", gloo or "")
    monkeypatch.setenv("HCCL_SOCKET_IFNAME", "")
    place = Place(0, 2, 0, tp=Group(0, 2), rendezvous=rendezvous, address="127.0.0.1")
    prepare_host_groups(place)
    names = ("GLOO_SOCKET_IFNAME", "HCCL_SOCKET_IFNAME")
    assert tuple(os.environ.get(name) or None for name in names) == expected


def test_what_hccl_was_given_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HCCL_SOCKET_IFNAME", "eth3")
    place = Place(0, 2, 0, tp=Group(0, 2), rendezvous="10.0.0.1:29500", address="127.0.0.1")
    prepare_host_groups(place)
    assert os.environ["HCCL_SOCKET_IFNAME"] == "eth3"
