"""Copies on another machine, which is this one: an agent in a process of its own."""

from __future__ import annotations

import asyncio
import dataclasses
import multiprocessing
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import pytest

from tests.engine.scripted_core import make_shifted_core, make_slow_core
from tests.engine.test_async_llm import deltas
from tests.engine.test_replicas import LONG, endings, serving
from tests.limits import HANG_S, is_running, until
from vllm.config.vllm import VllmConfig
from vllm.engine.addresses import Addresses
from vllm.engine.async_llm import AsyncLLM
from vllm.engine.attached import Attachment
from vllm.engine.attached_replicas import AttachedReplicas
from vllm.engine.copies_agent import CopiesAgent
from vllm.engine.far_copies import FarCopies
from vllm.engine.front_link import FrontLink
from vllm.engine.own_replicas import OwnReplicas
from vllm.engine.replicas import State
from vllm.errors import ConfigError, EngineDeadError
from vllm.messages.engine import EngineDead, EngineReady
from vllm.sampling_params import SamplingParams
from vllm.utils.network_utils import get_open_port

pytestmark = pytest.mark.engine

NUM_COPIES = 3


@pytest.fixture
def copies(config: VllmConfig) -> VllmConfig:
    """Of the server, which has copy 0; others are to have 1 and 2."""
    return placed(config, 0, 1, get_open_port())


def placed(config: VllmConfig, first: int, count: int, port: int = 0) -> VllmConfig:
    parallel = dataclasses.replace(
        config.parallel,
        data_parallel_size=NUM_COPIES,
        served_copies=NUM_COPIES,
        data_parallel_size_local=count,
        data_parallel_start_rank=first,
        data_parallel_rank=first,
        data_parallel_rpc_port=port or config.parallel.data_parallel_rpc_port,
    )
    return dataclasses.replace(config, parallel=parallel)


@contextmanager
def agent(config: VllmConfig, errors: Path, **environment: str) -> Iterator[SpawnProcess]:
    """Runs until the server ends; writes what it raises to a file."""
    process = multiprocessing.get_context("spawn").Process(
        target=run_agent, args=(config, errors, environment)
    )
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def run_agent(config: VllmConfig, errors: Path, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    try:
        CopiesAgent(config, make_shifted_core).run()
    except (ConfigError, EngineDeadError) as error:
        errors.write_text(f"{type(error).__name__}: {error}")


def pid_of(llm: AsyncLLM, core: int) -> int:
    return llm.client.cores[core].pid


async def test_copies_of_another_machine_serve_end_and_come_again(
    copies: VllmConfig, tmp_path: Path
) -> None:
    with agent(placed(copies, 1, 2), tmp_path / "first") as first:
        client = OwnReplicas(copies, make_slow_core, num_others=1)
        attached = AttachedReplicas(
            copies, Attachment(client.addresses, 1, tuple(client.living_cores))
        )
        with serving(client, copies) as llm, serving(attached, copies) as other:
            await llm.check_health()
            for each in (llm, other):
                assert set(await endings(each, 30)) == {"length"}
                assert await each.call("echo", 1) == [[1]] * NUM_COPIES
            await check_a_request_may_name_a_far_copy(llm)
            await check_a_far_core_that_is_killed(llm, other)
            await check_a_far_core_that_is_stopped(llm)
            # The whole machine.
            pids = [pid_of(llm, core) for core in (1, 2)]
            tasks = [asyncio.create_task(endings(each, 30, LONG)) for each in (llm, other)]
            await until(lambda: all(len(each._owners) >= 30 for each in (client, attached)))
            first.kill()
            for task in tasks:
                ends = await task
                gone = "the machine with copies 1 to 2 (127.0.0.1) is gone: the connection ended"
                assert set(ends) == {"length", gone}
            await until(lambda: not any(map(is_running, pids)), "the end of its cores")
            assert set(await endings(llm, 10)) == {"length"}
            with agent(placed(copies, 1, 2), tmp_path / "second") as second:
                for replicas in (client, attached):
                    await until(lambda of=replicas: are_up(of), "the copies to come again")
                assert set(await endings(other, 30)) == {"length"}
                assert await llm.call("num_requests") == [0] * NUM_COPIES
                pids = [pid_of(llm, core) for core in (1, 2)]
                other.shutdown()
                llm.shutdown()
                second.join(HANG_S)
                assert second.exitcode == 0 and not (tmp_path / "second").exists()
                assert not any(map(is_running, pids))


def are_up(client: OwnReplicas | AttachedReplicas) -> bool:
    return all(replica.state is State.UP for replica in client._replicas.values())


async def check_a_request_may_name_a_far_copy(llm: AsyncLLM) -> None:
    stream = await llm.add_request("a", [5], deltas(max_tokens=900), data_parallel_rank=2)
    await stream.get()
    assert await llm.call("num_requests") == [0, 0, 1]
    stream.close()
    params = SamplingParams(max_tokens=3)
    outputs = llm.generate([5], params, "timed", data_parallel_rank=2)
    times = [output.metrics async for output in outputs][-1]
    assert times is not None and times.first_token_time is not None
    assert 0 <= times.first_token_time - times.arrival_time < HANG_S, "of this machine's clock"


async def check_a_far_core_that_is_killed(llm: AsyncLLM, other: AsyncLLM) -> None:
    victim = pid_of(llm, 2)
    tasks = [asyncio.create_task(endings(each, 30, LONG)) for each in (llm, other)]
    await until(lambda: all(len(each.client._owners) >= 30 for each in (llm, other)))  # type: ignore[attr-defined]
    os.kill(victim, signal.SIGKILL)
    for task in tasks:
        text = f"engine core 2 of 127.0.0.1 (process {victim}) was killed by SIGKILL"
        ends = await task
        assert set(ends) == {"length", text}
    for each in (llm, other):
        await until(lambda of=each: pid_of(of, 2) != victim, "another life")
        assert set(await endings(each, 30)) == {"length"}


async def check_a_far_core_that_is_stopped(llm: AsyncLLM) -> None:
    assert isinstance(llm.client, OwnReplicas)
    stopped, replica = pid_of(llm, 1), llm.client._replicas[1]
    os.kill(stopped, signal.SIGSTOP)
    try:
        await until(lambda: replica.pulse.silence_s() > 5.5)
        assert set(await endings(llm, 10)) == {"length"}
        assert replica.is_silent
    finally:
        os.kill(stopped, signal.SIGCONT)
    await until(lambda: replica.pulse.silence_s() < 3.0)


# -- meeting --------------------------------------------------------------------------------------


@contextmanager
def waiting_server(config: VllmConfig, folder: Path) -> Iterator[FrontLink]:
    """The part of a server that waits for copies 1 and 2; front end 0's inbox."""
    addresses = Addresses.of(str(folder), 1).reached_from("127.0.0.1")
    link = FrontLink(addresses, 0)
    far_copies = FarCopies(config, addresses, range(1, NUM_COPIES))
    try:
        yield link
    finally:
        far_copies.stop()
        far_copies.stop()
        link.close()


def test_copies_that_do_not_come_are_named(
    copies: VllmConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("VLLM_ENGINE_READY_TIMEOUT_S", "1")
    with waiting_server(copies, tmp_path) as link:
        core, message, _ = link.receive()
    assert core == 1
    assert isinstance(message, EngineDead) and message.kind == "ConfigError"
    assert re.search(r"copies 1, 2 of the model have not come to .* within 1 s", message.error)


@pytest.mark.parametrize(
    ("first", "count", "changes", "text"),
    [
        (0, 1, {}, "the server waits for copies 1 to 2, and has the others itself"),
        (2, 2, {}, "the server waits for copies 1 to 2"),
        (1, 1, {"tensor_parallel_size": 2}, "the parallel settings"),
    ],
    ids=["a copy of the server", "a copy too many", "other settings"],
)
def test_a_machine_that_does_not_fit_is_refused(
    copies: VllmConfig,
    tmp_path: Path,
    first: int,
    count: int,
    changes: dict[str, Any],
    text: str,
) -> None:
    other = placed(copies, first, count)
    other = dataclasses.replace(other, parallel=dataclasses.replace(other.parallel, **changes))
    with waiting_server(copies, tmp_path), pytest.raises(ConfigError, match=text):
        CopiesAgent(other, make_slow_core).run()


def test_strangers_are_sent_away(copies: VllmConfig, tmp_path: Path) -> None:
    parallel = copies.parallel
    address = (parallel.data_parallel_address, parallel.data_parallel_rpc_port)
    with waiting_server(copies, tmp_path):
        for words in (b"GET / HTTP/1.1\r\n\r\n", b""):
            with socket.create_connection(address) as stranger:
                stranger.sendall(words)
                stranger.shutdown(socket.SHUT_WR)
                assert stranger.recv(100) == b""
        # Those that fit are still welcome.
        with pytest.raises(ConfigError, match="the server waits for"):
            CopiesAgent(placed(copies, 0, 1), make_slow_core).run()


def test_a_machine_that_cannot_reach_the_server_says_so(
    copies: VllmConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_ENGINE_READY_TIMEOUT_S", "1")
    with pytest.raises(ConfigError, match=r"cannot be reached at 127\.0\.0\.1:\d+ .* within 1 s"):
        CopiesAgent(placed(copies, 1, 2), make_slow_core).run()


def test_a_server_without_copies_of_its_own_stops(copies: VllmConfig, tmp_path: Path) -> None:
    """Though no process of this machine tells it of an end."""
    no_local = placed(copies, 0, 0, copies.parallel.data_parallel_rpc_port)
    of_agent = placed(copies, 0, NUM_COPIES, copies.parallel.data_parallel_rpc_port)
    with agent(of_agent, tmp_path / "errors") as process:
        client = OwnReplicas(no_local, make_slow_core)
        received: list[object] = []
        receiver = threading.Thread(target=lambda: received.append(client.receive()))
        receiver.start()
        client.stop()
        receiver.join(HANG_S)
        assert received == [None]
        client.close()
        process.join(HANG_S)
        assert process.exitcode == 0


def test_an_address_of_another_machine_is_refused(
    copies: VllmConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    parallel = dataclasses.replace(copies.parallel, data_parallel_address="203.0.113.1")
    config = dataclasses.replace(copies, parallel=parallel)
    with pytest.raises(ConfigError, match=r"--data-parallel-address 203\.0\.113\.1 .*cannot"):
        OwnReplicas(config, make_slow_core)
    monkeypatch.setenv("VLLM_HOST_IP", "203.0.113.1")
    with pytest.raises(ConfigError, match=r"VLLM_HOST_IP=203\.0\.113\.1"):
        OwnReplicas(copies, make_slow_core)


def test_a_port_that_is_taken_is_named(copies: VllmConfig, tmp_path: Path) -> None:
    with waiting_server(copies, tmp_path), pytest.raises(ConfigError, match="--data-parallel-rpc"):
        FarCopies(copies, Addresses.of(str(tmp_path), 1), range(1, NUM_COPIES))


def test_copies_that_nobody_starts_again_say_so_once_they_are_gone(
    copies: VllmConfig, tmp_path: Path
) -> None:
    far_copies = FarCopies(copies, Addresses.of(str(tmp_path), 1), range(1, NUM_COPIES))
    link = FrontLink(far_copies.addresses, 0)
    try:
        with agent(placed(copies, 1, 1), tmp_path / "errors") as process:
            while not isinstance(link.receive()[1], EngineReady):
                pass
            far_copies.give_up(range(1, 3), "their machine is sold")
            heard = heard_ends(link, 1)
            assert heard == {2: (True, "their machine is sold")}, "copy 1 is still there"
            process.kill()
            ((is_final, why),) = heard_ends(link, 1).values()
            assert not is_final and "copies 1 to 1 (127.0.0.1) is gone" in why
            assert heard_ends(link, 1) == {1: (True, "their machine is sold")}
    finally:
        far_copies.stop()
        link.close()


def heard_ends(link: FrontLink, count: int) -> dict[int, tuple[bool, str]]:
    """The next so many ends of copies: whether final, and why."""
    found: dict[int, tuple[bool, str]] = {}
    while len(found) < count:
        core, message, _ = link.receive()
        if isinstance(message, EngineDead):
            found[core] = message.is_final, message.error
    return found
