import asyncio
import json

import pytest

from tests.limits import HANG_S, until

pytestmark = pytest.mark.asyncio


class Connection:
    """A client on the ASGI side of the server, which hangs up when told to."""

    def __init__(self, app, body):
        self.app = app
        self.body = json.dumps(body).encode()
        self.gone = asyncio.Event()
        self.got_body = asyncio.Event()
        self.has_sent = False
        self.messages = []

    async def receive(self):
        if not self.has_sent:
            self.has_sent = True
            return {"type": "http.request", "body": self.body, "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message):
        self.messages.append(message)
        if message["type"] == "http.response.body":
            self.got_body.set()

    async def run(self):
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "method": "POST",
            "path": "/v1/completions",
            "raw_path": b"/v1/completions",
            "root_path": "",
            "query_string": b"",
            "headers": [(b"content-type", b"application/json")],
        }
        await self.app(scope, self.receive, self.send)


@pytest.mark.parametrize("prompt", ["a", ["a", "b", "c"]])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_hangs_up_aborts_its_requests(make_app, engine, stream, prompt):
    engine.gap_s = 0.02
    engine.text = "x" * 4000  # for longer than this takes
    connection = Connection(make_app(), {"prompt": prompt, "stream": stream})
    task = asyncio.create_task(connection.run())
    await until(lambda: len(engine.running) == len(prompt))
    if stream:
        await connection.got_body.wait()
    connection.gone.set()
    await asyncio.wait_for(task, HANG_S)
    assert not engine.running
    assert len(engine.aborted) == len(prompt)


async def test_a_client_that_hangs_up_before_the_first_token_aborts_its_request(make_app, engine):
    engine.gap_s = 60
    connection = Connection(make_app(), {"prompt": "a", "stream": True})
    task = asyncio.create_task(connection.run())
    await until(lambda: engine.running)
    connection.gone.set()
    await asyncio.wait_for(task, HANG_S)
    assert engine.aborted
    assert not connection.got_body.is_set() or connection.messages[0]["status"] == 499
