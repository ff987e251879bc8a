"""A real server with two copies of the model: metrics, the header, and a copy that is killed."""

from __future__ import annotations

import os
import re
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.entrypoints.openai.real_server import RealServer, serving
from tests.entrypoints.openai.test_real_server import wait_until_gone
from tests.limits import HANG_S, wait_until

pytestmark = pytest.mark.engine

GREEDY = {"prompt": "Once upon a time", "temperature": 0, "max_tokens": 12, "ignore_eos": True}
# The prompt of a turn is many blocks of a cache.
OPENING = "Once upon a time there was a little fox who lived in a small house near the river. " * 4


def ask(server: RealServer, copy: int | None = None, **fields: Any) -> httpx.Response:
    """On a connection of its own, which any of the API servers may take."""
    headers = {} if copy is None else {"X-data-parallel-rank": str(copy)}
    body = {**GREEDY, **fields}
    return httpx.post(f"{server.url}/v1/completions", json=body, headers=headers, timeout=HANG_S)


def text_of(reply: httpx.Response) -> str:
    assert reply.status_code == 200, reply.text
    return str(reply.json()["choices"][0]["text"])


def by_engine(server: RealServer, name: str) -> dict[str, float]:
    text = httpx.get(f"{server.url}/metrics").text
    found = re.findall(rf"^{name}{{(.*)}} (\S+)$", text, re.MULTILINE)
    values: dict[str, float] = {}
    for labels, value in found:
        engine = re.search(r'engine="(\d+)"', labels)
        assert engine is not None, labels
        values[engine[1]] = values.get(engine[1], 0.0) + float(value)
    return values


def core_pids(server: RealServer) -> dict[int, int]:
    """Processes of the copies that are up, by number, as the log tells."""
    found = re.findall(r"engine core (\d) is up \(process (\d+)", log(server))
    return {int(number): int(pid) for number, pid in found}


def log(server: RealServer) -> str:
    return server.log.read_text()


@pytest.mark.parametrize("num_servers", [pytest.param(1, marks=pytest.mark.product), 2])
def test_copies_answer_are_named_and_fail_alone(tmp_path: Path, num_servers: int) -> None:
    flags = ["--data-parallel-size", "2", "--api-server-count", str(num_servers)]
    with serving(*flags, log=tmp_path / "log.txt") as server:
        answers = {text_of(ask(server, copy)) for copy in (0, 1, None, None, 0, 1)}
        assert len(answers) == 1
        assert set(by_engine(server, "vllm:request_success_total")) == {"0", "1"}
        assert sum(by_engine(server, "vllm:generation_tokens_total").values()) == 6 * 12
        for wrong, text in (("2", "from 0 to 1"), ("-1", "must be the number")):
            reply = httpx.post(
                f"{server.url}/v1/completions",
                json=GREEDY,
                headers={"X-data-parallel-rank": wrong},
                timeout=HANG_S,
            )
            assert reply.status_code == 400 and text in reply.text
        children = server.children()
        check_a_conversation_stays(server)
        check_a_kill(server)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(HANG_S) == 0
        wait_until_gone([*children, *server.children()])


def check_a_conversation_stays(server: RealServer) -> None:
    before = by_engine(server, "vllm:prefix_cache_hits_total")
    prompt = OPENING
    for _ in range(4):
        prompt += text_of(ask(server, prompt=prompt, max_tokens=40))
    after = by_engine(server, "vllm:prefix_cache_hits_total")
    assert sorted(after[engine] > before[engine] for engine in after) == [False, True]


def check_a_kill(server: RealServer) -> None:
    """Requests of the other copy do not notice it."""
    pids = core_pids(server)
    assert set(pids) == {0, 1}
    with ThreadPoolExecutor(8) as threads:
        long = {"max_tokens": 600, "n": 4, "temperature": 1}
        asked = [threads.submit(ask, server, number % 2, **long) for number in range(8)]
        wait_until(lambda: by_engine(server, "vllm:num_requests_running")["0"] == 16)
        os.kill(pids[0], signal.SIGKILL)
        replies = [each.result() for each in asked]
    failed = [reply for reply in replies if reply.status_code != 200]
    assert 1 <= len(failed) <= 4
    assert all(f"(process {pids[0]})" in reply.text for reply in failed if reply.status_code == 500)
    # Sent a moment later.
    assert all("is being started again" in r.text for r in failed if r.status_code == 503)
    assert {reply.status_code for reply in failed} <= {500, 503}
    assert httpx.get(f"{server.url}/health").status_code == 200
    # While the other starts, and by the new process.
    assert text_of(ask(server)) == text_of(ask(server))
    wait_until(lambda: core_pids(server)[0] != pids[0], "another life of the copy")
    assert len({text_of(ask(server, copy)) for copy in (0, 1)}) == 1
    assert core_pids(server)[1] == pids[1]
