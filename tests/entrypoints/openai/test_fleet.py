"""--api-server-count: processes, signals and deaths, on the real engine."""

import multiprocessing
import os
import re
import signal
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest

from tests.entrypoints.openai.real_server import serving
from tests.entrypoints.openai.test_real_server import wait_until_gone
from tests.limits import HANG_S
from vllm.entrypoints.openai.fleet import HURRY_S, PATIENCE_S, Fleet

pytestmark = pytest.mark.engine
GREEDY = {"prompt": "Once upon a time", "temperature": 0, "max_tokens": 12}


def is_ours(pid):
    return b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()


def requests_by_server(server):
    """How many of the connections each API server answered, by what its log says."""
    return [len(re.findall(rf"\(api {i}\) .* prompt", server.log.read_text())) for i in range(2)]


def ask(server, **fields):
    """On a connection of its own, which any of the servers may take."""
    reply = httpx.post(f"{server.url}/v1/completions", json={**GREEDY, **fields}, timeout=HANG_S)
    assert reply.status_code == 200, reply.text
    return reply.json()


def test_several_api_servers_share_one_engine_and_end_together(tmp_path):
    flags = ("--api-server-count", "2", "--enable-log-requests", "--shutdown-timeout", "20")
    with serving(*flags, log=tmp_path / "log.txt") as server:
        answers = [ask(server, request_id="same") for _ in range(24)]
        assert len({answer["choices"][0]["text"] for answer in answers}) == 1
        assert all(requests_by_server(server))
        # Whoever is asked knows of all.
        for _ in range(4):
            assert server.metric("vllm:generation_tokens_total") == 24 * 12
        body = {**GREEDY, "temperature": 1, "max_tokens": 900, "n": 8}
        body |= {"ignore_eos": True, "stream": True}
        with server.client() as http, http.stream("POST", "/v1/completions", json=body) as response:
            lines = response.iter_lines()
            next(lines)
            loads = [httpx.get(f"{server.url}/load").json()["server_load"] for _ in range(6)]
            children = server.children()
            server.process.send_signal(signal.SIGTERM)
            events = [line for line in lines if line.startswith("data: ")]
        assert loads == [1] * 6
        assert events[-1] == "data: [DONE]"
        assert '"length"' in events[-2]
        assert server.process.wait(HANG_S) == 0
        wait_until_gone(children)


def test_when_one_api_server_is_killed_all_end(tmp_path):
    with serving("--api-server-count", "2", log=tmp_path / "log.txt") as server:
        children = server.children()
        _, *api_servers = filter(is_ours, children)  # the engine core is started before them
        assert len(api_servers) == 2
        os.kill(api_servers[1], signal.SIGKILL)
        assert server.process.wait(HANG_S) == 1
        wait_until_gone(children)
        assert "exit code -9" in server.log.read_text()


def test_nothing_is_left_of_a_server_that_was_killed(tmp_path):
    with tempfile.TemporaryDirectory() as scratch:  # sockets need a short path
        flags = ("--api-server-count", "2")
        env = {"TMPDIR": scratch}
        with serving(*flags, log=tmp_path / "log.txt", env=env) as server:
            children = server.children()
            (ours,) = Path(scratch).glob("vllm-*")
            assert list(ours.glob("metrics/*.db"))
            server.process.kill()
            server.process.wait()
            wait_until_gone(children)
            assert not list(Path(scratch).glob("vllm-*"))


def fleet_of(*processes, shutdown_timeout=1000):
    options = SimpleNamespace(shutdown_timeout=shutdown_timeout)
    fleet = Fleet(None, options, None, None)
    fleet.processes += processes
    return fleet


def test_a_signal_never_moves_the_end_to_a_later_time():
    fleet = fleet_of()
    fleet.end()
    first = fleet.ends_by_s
    fleet.end()
    second = fleet.ends_by_s
    assert second < first and second - time.monotonic() <= HURRY_S
    fleet.end()
    assert fleet.ends_by_s == second


def stay(ready):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    ready.send_bytes(b"")
    time.sleep(1000)


def test_api_servers_that_do_not_end_are_killed_once_and_then_that_is_all(log_lines):
    context = multiprocessing.get_context("fork")
    reader, writer = context.Pipe()
    process = context.Process(target=stay, args=(writer,), daemon=True)
    process.start()
    reader.recv_bytes()
    fleet = fleet_of(process, shutdown_timeout=-PATIENCE_S)
    fleet.end()
    fleet._wait_for_end()
    assert fleet.failure is None
    assert [line for line in log_lines.text.splitlines() if "in time" in line] == [
        "API servers that did not end in time are killed: 1"
    ]
