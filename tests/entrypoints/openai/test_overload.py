import asyncio

import pytest

from tests.entrypoints.openai.listening import listening
from vllm.entrypoints.openai.admission import (
    Admission,
    Overloaded,
    OwnTally,
    SharedTally,
    Stopping,
    Tallies,
)
from vllm.messages.engine import EngineStats
from vllm.metrics.stats import IterationStats


def tell(admission, num_waiting, core=0):
    admission.record(EngineStats(num_waiting=num_waiting), IterationStats(), core)


def test_what_is_open_beyond_a_full_batch_waits():
    admission = Admission(max_waiting=2, max_running=4)
    with (
        admission.open(4),
        admission.open(2),
        pytest.raises(Overloaded, match="--max-waiting-requests"),
    ):
        admission.check()
    with admission.open(5), pytest.raises(Overloaded):
        admission.check(2)
    with pytest.raises(Overloaded, match="3 sequences would wait"):
        admission.check(7)
    admission.check(6)


def test_a_queue_in_front_of_a_batch_that_is_not_full_counts():
    admission = Admission(max_waiting=2, max_running=100)
    tell(admission, 2)  # the blocks ran out
    with pytest.raises(Overloaded):
        admission.check()
    tell(admission, 0)
    admission.check()


def test_nothing_waits_while_one_of_several_cores_has_no_queue():
    admission = Admission(max_waiting=4, max_running=100, num_cores=2)
    tell(admission, 9, core=0)
    admission.check()
    tell(admission, 1, core=1)
    with pytest.raises(Overloaded, match="11 sequences would wait"):
        admission.check()
    tell(admission, 2, core=0)
    admission.check()
    with pytest.raises(Overloaded, match="5 sequences would wait"):
        admission.check(2)
    tell(admission, 0, core=0)
    admission.check(2)


def test_no_sequence_waits_when_none_may():
    admission = Admission(max_waiting=0, max_running=1)
    with admission.open(1), pytest.raises(Overloaded):
        admission.check()
    admission.check()


def test_without_a_limit_everything_is_taken_until_the_server_ends():
    admission = Admission()
    tell(admission, 10**6)
    with admission.open(10**6):
        admission.check()
        admission.close()
        with pytest.raises(Stopping):
            admission.check()
    assert admission.tallies.requests.total() == 0


def test_several_servers_count_together(tmp_path):
    path = tmp_path / "tally"
    path.write_bytes(bytes(SharedTally.file_bytes(2)))
    one, other = (
        Admission(3, 2, Tallies(SharedTally(str(path), i, 2), OwnTally())) for i in range(2)
    )
    with one.open(4):
        assert other.tallies.sequences.total() == 4
        assert other.tallies.sequences.own() == 0
        with other.open(1), pytest.raises(Overloaded):
            one.check()
    assert other.tallies.sequences.total() == 0


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "path, prompt",
    [
        ("/v1/completions", {"prompt": "a"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}),
    ],
)
async def test_a_busy_server_answers_503_with_retry_after(make_app, engine, path, prompt, stream):
    engine.may_go.clear()
    async with listening(make_app) as served, served.client() as client:
        served.context.admission.max_waiting = 1
        served.context.admission.max_running = 1
        body = {**prompt, "max_tokens": 8, "stream": stream}
        busy = asyncio.create_task(client.post(path, json={**body, "n": 2}))
        while not engine.running:
            await asyncio.sleep(0.005)
        reply = await client.post(path, json=body)
        assert reply.status_code == 503
        assert reply.headers["retry-after"] == "1"
        assert reply.json()["error"]["type"] == "OverloadedError"
        engine.may_go.set()
        assert (await busy).status_code == 200
        assert (await client.post(path, json=body)).status_code == 200
        assert (await client.get("/load")).json() == {"server_load": 0}


async def test_more_sequences_than_may_wait_are_refused_at_once(make_app):
    async with listening(make_app) as served, served.client() as client:
        served.context.admission.max_waiting = 3
        served.context.admission.max_running = 1
        body = {"prompt": ["a", "b"], "n": 3, "max_tokens": 1}
        assert (await client.post("/v1/completions", json=body)).status_code == 503
        body["n"] = 2
        assert (await client.post("/v1/completions", json=body)).status_code == 200


async def test_a_reader_that_pauses_does_not_hold_up_another(make_app, engine):
    engine.text = "x" * 20_000
    async with listening(make_app) as served, served.client() as client:
        body = {"prompt": ["a", "b"], "max_tokens": 20_000, "stream": True}
        async with client.stream("POST", "/v1/completions", json=body) as paused:
            pieces = paused.aiter_lines()
            await anext(pieces)
            reply = await client.post("/v1/completions", json={"prompt": "a", "max_tokens": 5})
            assert reply.json()["choices"][0]["text"] == "xxxxx"
            rest = [line async for line in pieces if line.startswith("data: {")]
            assert len(rest) > 2
