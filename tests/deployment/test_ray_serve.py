"""examples/deploy/ray_serve.py on a real Ray: replicas come, go and die while requests run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.deployment.serving import MODEL, NUM_TOKENS, Answer, Service, deployed
from tests.engine_e2e.ray_cluster import ROOT, VARIABLES, RayCluster
from tests.engine_e2e.test_rank_faults import MARK, marked
from tests.limits import HANG_S, wait_until
from vllm import LLM, SamplingParams

pytest.importorskip("ray.serve", reason="ray[serve] is not installed", exc_type=ImportError)
pytestmark = [pytest.mark.engine, pytest.mark.product]

# Two open requests per replica, of two to three replicas, which come and go without much delay.
FLAGS = (
    "--min-replicas=2 --max-replicas=3 --target-ongoing-requests=2 --upscale-delay-s=1 "
    "--downscale-delay-s=2 --max-model-len=512 --max-num-seqs=8 --device=cpu "
    "--enable-prompt-tokens-details --kv-cache-memory-bytes=64M"
).split()


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    cluster = RayCluster()
    try:
        # As pods import the example: by its name, from a directory on the path.
        path = os.pathsep.join((str(ROOT), str(ROOT / "examples" / "deploy")))
        cluster.add({"PYTHONPATH": path}, **{"num-cpus": 8})
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(scope="module")
def environment(cluster: RayCluster) -> dict[str, str]:
    """Of a program that deploys."""
    variables = {
        **VARIABLES,
        MARK: uuid.uuid4().hex,
        "VLLM_RAY_EXTRA_ENV_VARS_TO_COPY": MARK,
        "RAY_ADDRESS": cluster.address,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    return {**os.environ, **variables}


@pytest.fixture(scope="module")
def service(environment: dict[str, str]) -> Iterator[Service]:
    with deployed(FLAGS, environment, 2) as found:
        yield found


@pytest.fixture(scope="module")
def text() -> str:
    """What one engine without Ray writes."""
    llm = LLM(str(ROOT / MODEL), max_model_len=512, device="cpu")
    try:
        params = SamplingParams(temperature=0, max_tokens=NUM_TOKENS)
        return str(llm.generate(["Once upon a time"], params)[0].outputs[0].text)
    finally:
        llm.llm_engine.shutdown()


def test_every_replica_writes_what_one_engine_does(service: Service, text: str) -> None:
    """Whole and as a stream."""
    for replica, session in service.sessions(2).items():
        whole = service.complete(session)
        stream = service.complete(session, stream=True)

        assert (whole.status, stream.status) == (200, 200)
        assert {whole.replica, stream.replica} == {replica}
        assert whole.body["choices"][0]["text"] == text
        events = [line[6:] for line in stream.body.split("\n\n") if line]
        assert events.pop() == "[DONE]"
        assert "".join(json.loads(event)["choices"][0]["text"] for event in events) == text


def test_all_endpoints_are_there(service: Service) -> None:
    assert service.ask("/version").status == 200
    assert service.ask("/-/healthz").body == "success", "of Serve's proxy: a probe of rayservice"
    assert "vllm:num_requests_running" in service.ask("/metrics").body
    assert service.ask("/tokenize", {"prompt": "Once"}).body["count"] > 0
    assert service.ask("/nothing").status == 404
    assert service.complete(max_tokens=-1).body["error"]["type"] == "BadRequestError"
    assert "<html" in service.ask("/").body


def test_conversations_keep_their_replica_and_its_cache(service: Service) -> None:
    """Nobody says which conversation a request belongs to."""
    replicas = set()
    for number in range(24):
        messages = [{"role": "user", "content": f"What is {number} + 7? " + "Tell me. " * 8}]
        turns = []
        for _ in range(3):
            answer = service.ask(
                "/v1/chat/completions", {"messages": messages, "max_tokens": 8, "temperature": 0}
            )
            assert answer.status == 200, answer
            turns.append(answer)
            messages.append(answer.body["choices"][0]["message"])
            messages.append({"role": "user", "content": "And then?"})
        assert len({turn.replica for turn in turns}) == 1
        cached = [turn.body["usage"]["prompt_tokens_details"]["cached_tokens"] for turn in turns]
        assert cached[1] > 16 and cached[2] >= cached[1]
        replicas.add(turns[0].replica)
    assert len(replicas) == 2


def figure(service: Service, session: str, name: str) -> int:
    """A metric of the session's replica; `name` is how its lines begin, of which there is one."""
    lines = service.ask("/metrics", session=session).body.splitlines()
    values = [float(line.split()[-1]) for line in lines if line.startswith(name)]
    assert len(values) <= 1
    return int(sum(values))


def test_a_client_that_goes_away_ends_its_request(service: Service) -> None:
    session = next(iter(service.sessions(2).values()))
    body = {"prompt": "One day", "n": 400, "max_tokens": 480, "ignore_eos": True, "stream": True}
    connection = service.connection()
    response = service.open(connection, "/v1/completions", body, session)
    assert response.readline()
    assert figure(service, session, "vllm:num_requests_running{") > 0

    response.close()
    connection.close()

    def has_ended() -> bool:
        return figure(service, session, "vllm:num_requests_running{") == 0

    wait_until(has_ended, "the end of its request")
    lines = service.ask("/metrics", session=session).body.splitlines()
    ends = [line for line in lines if line.startswith("vllm:request_success_total{")]
    counts = {
        line.split('finished_reason="')[1].split('"')[0]: float(line.split()[-1]) for line in ends
    }
    assert counts["length"] + counts["stop"] < body["n"], "it was not computed to its end"


class Load:
    """Threads that ask one request after the other; what became of each."""

    def __init__(self, service: Service, sessions: list[str], **more: Any) -> None:
        self.answers: list[Answer] = []
        self.errors: list[BaseException] = []
        self._is_over = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(service, session, more))
            for session in sessions
        ]
        for thread in self._threads:
            thread.start()

    def _run(self, service: Service, session: str, more: dict[str, Any]) -> None:
        number = 0
        while not self._is_over.is_set():
            number += 1
            try:
                streams = {"stream": number % 2 == 0}
                self.answers.append(service.complete(session, **streams, **more))
            except Exception as error:
                self.errors.append(error)

    def replicas(self, since: int = 0) -> set[str]:
        return {answer.replica for answer in self.answers[since:]}

    def end(self) -> None:
        """Raises what any of them met."""
        self._is_over.set()
        for thread in self._threads:
            thread.join(timeout=HANG_S)
        assert self.errors == []
        bad = [answer for answer in self.answers if answer.status != 200]
        assert bad == []
        for answer in self.answers:
            if isinstance(answer.body, str):
                assert answer.body.endswith("data: [DONE]\n\n"), "a stream was cut"


def test_replicas_come_and_go_while_requests_run(service: Service) -> None:
    """No request fails, those of the replica that goes included."""
    load = Load(service, [f"user {number}" for number in range(9)], max_tokens=200)
    try:
        sessions = service.sessions(3)
        wait_until(lambda: load.replicas() >= set(sessions), "work for the third replica")
    finally:
        load.end()

    # One long request at a time on each: two replicas are enough, and whichever goes is busy.
    long = Load(
        service, list(sessions.values()), n=48, temperature=1, max_tokens=400, ignore_eos=True
    )
    try:
        wait_until(lambda: long.replicas() == set(sessions), "answers of all three")

        def has_gone() -> bool:
            return len(long.replicas(since=-6)) == 2 and len(long.answers) > 6

        wait_until(has_gone, "the end of a replica")
    finally:
        long.end()


def test_a_replica_whose_engine_died_is_replaced(service: Service) -> None:
    before = service.sessions(2)
    cores = [pid for pid in marked(service.mark) if b"spawn_main" in words_of(pid)]
    assert cores

    os.kill(cores[0], signal.SIGKILL)

    def is_replaced() -> bool:
        return len(set(service.sessions(2)) - set(before)) == 1

    wait_until(is_replaced, "another replica")
    assert {service.complete(session).status for session in service.sessions(2).values()} == {200}


def words_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def test_an_application_of_serve_with_a_path_of_its_own(
    service: Service, environment: dict[str, str], text: str
) -> None:
    """As RayService deploys it: an import path, and arguments of a file. Leaves the other alone."""
    serve = [sys.executable, "-m", "ray.serve.scripts"]
    arguments = [f"model={MODEL}", "device=cpu", "max-model-len=512", "kv_cache_memory_bytes=64M"]
    where = ["--app-dir=examples/deploy", "--name=second", "--route-prefix=/second"]
    process = subprocess.Popen(
        [*serve, "run", *where, "ray_serve:application", *arguments], cwd=ROOT, env=environment
    )
    try:
        body = {"prompt": "Once upon a time", "max_tokens": NUM_TOKENS, "temperature": 0}

        def answer() -> Answer:
            assert process.poll() is None, "`serve run` ended"
            return service.ask("/second/v1/completions", body)

        wait_until(lambda: service.ask("/second/health").status == 200, "the second application")
        found = answer()
        assert found.body["choices"][0]["text"] == text
        assert found.replica not in service.sessions(2)
    finally:
        process.kill()
        process.wait()
