import asyncio
import os
import signal

import httpx
import pytest

from tests.entrypoints.openai.listening import listening
from tests.limits import HANG_S
from vllm.errors import EngineDeadError

LONG = {"prompt": "a", "max_tokens": 20}


async def start_long(served, client, **fields):
    """A request that runs."""
    task = asyncio.create_task(client.post("/v1/completions", json={**LONG, **fields}))
    while not served.context.engine.running:
        await asyncio.sleep(0.005)
    return task


async def wait_until_ending(client):
    while (await client.get("/health")).status_code == 200:
        await asyncio.sleep(0.005)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_lets_open_requests_end_and_takes_no_others(make_app, engine, number):
    engine.may_go.clear()
    async with listening(make_app, shutdown_timeout=30) as served, served.client() as client:
        running = await start_long(served, client)
        os.kill(os.getpid(), number)
        await wait_until_ending(client)
        refused = await client.post("/v1/completions", json=LONG)
        assert refused.status_code == 503
        assert refused.headers["retry-after"]
        assert refused.json()["error"]["type"] == "StoppingError"
        engine.may_go.set()
        reply = await running
        assert reply.status_code == 200
        assert reply.json()["usage"]["completion_tokens"] == 20
        await asyncio.wait_for(served.task, HANG_S)
        with pytest.raises(httpx.ConnectError):
            await client.get("/health")
        assert not engine.aborted


async def test_an_idle_server_ends_at_once(make_app):
    async with listening(make_app, shutdown_timeout=1000) as served:
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(served.task, HANG_S)


async def test_requests_that_take_too_long_are_aborted(make_app, engine):
    engine.gap_s = 1000
    async with listening(make_app, shutdown_timeout=0) as served, served.client() as client:
        running = await start_long(served, client)
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(served.task, HANG_S)
        assert served.fate.num_aborts == 1
        assert engine.aborted
        await asyncio.gather(running, return_exceptions=True)


async def test_a_second_signal_does_not_wait(make_app, engine):
    engine.gap_s = 1000
    async with listening(make_app, shutdown_timeout=1000) as served, served.client() as client:
        running = await start_long(served, client)
        os.kill(os.getpid(), signal.SIGTERM)
        await wait_until_ending(client)
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(served.task, HANG_S)
        assert engine.aborted
        await asyncio.gather(running, return_exceptions=True)


async def test_a_server_whose_engine_died_ends_after_the_open_requests(make_app, engine):
    engine.gap_s = 0.02
    async with listening(make_app) as served, served.client() as client:
        running = await start_long(served, client)
        served.fate.death.set()
        assert (await running).status_code == 200
        with pytest.raises(EngineDeadError):
            await asyncio.wait_for(served.task, HANG_S)


async def test_a_server_whose_engine_died_can_be_told_to_go_on(make_app, engine, monkeypatch):
    monkeypatch.setenv("VLLM_KEEP_ALIVE_ON_ENGINE_DEATH", "1")
    async with listening(make_app) as served, served.client() as client:
        served.fate.death.set()
        engine.is_dead = True
        await asyncio.sleep(0.05)
        assert (await client.get("/health")).status_code == 503
        assert not served.task.done()
