"""Interfaces that the user names must exist."""

from __future__ import annotations

import os
import socket

import pytest

from vllm.distributed.groups import Group
from vllm.distributed.place import Place
from vllm.errors import ConfigError
from vllm.platforms.hpu.interfaces import check_interfaces, loopback, prepare_host_groups

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


@pytest.mark.parametrize(
    ("rendezvous", "given", "expected"),
    [
        ("/proc/1/fd/3", None, LOOPBACK),
        ("/proc/1/fd/3", "eth9", "eth9"),
        ("10.0.0.1:29500", None, None),
    ],
)
def test_ranks_of_one_machine_meet_over_the_loopback(
    rendezvous: str, given: str | None, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Set first, so that what the code sets is taken back.
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", given or "")
    place = Place(rank=0, world_size=2, local_rank=0, tp=Group(0, 2), rendezvous=rendezvous)
    prepare_host_groups(place)
    assert (os.environ.get("GLOO_SOCKET_IFNAME") or None) == expected
