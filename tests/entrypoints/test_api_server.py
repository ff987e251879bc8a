"""vllm.entrypoints.api_server, the plain server, on an engine that answers at once and exactly."""

from __future__ import annotations

import json

import httpx
import pytest
import pytest_asyncio

from tests.entrypoints.openai.fakes import FakeEngine, byte_tokenizer
from vllm.entrypoints.api_server import init_app, main, make_arg_parser

TEXT = "and they lived happily."


class TextEngine(FakeEngine):
    """Encodes prompts itself, as AsyncLLM does."""

    def generate(self, prompt, sampling_params, request_id):
        ids = self.tokenizer.encode(prompt)
        tokens = {"prompt": prompt, "prompt_token_ids": ids}
        return super().generate(tokens, sampling_params, request_id)


@pytest.fixture
def engine():
    return TextEngine(byte_tokenizer())


@pytest_asyncio.fixture
async def client(engine):
    args = make_arg_parser().parse_args(["--model", "m", "--port", "0", "--log-level", "error"])
    app = await init_app(args, engine)
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
        yield client


async def test_texts_come_back_with_their_prompt(client, engine):
    body = {"prompt": "Hi ", "n": 2, "temperature": 0.5, "max_tokens": 3, "logit_bias": {"5": 1}}
    reply = await client.post("/generate", json=body)
    assert (reply.status_code, reply.json()) == (200, {"text": ["Hi and", "Hi and"]})
    params = engine.seen[0][1]
    assert (params.n, params.temperature, params.logit_bias) == (2, 0.5, {5: 1.0})


async def test_a_stream_is_lines_of_all_the_text_so_far(client):
    body = {"prompt": "Hi ", "max_tokens": 3, "stream": True}
    reply = await client.post("/generate", json=body)
    lines = [json.loads(line)["text"] for line in reply.text.splitlines()]
    assert lines == [["Hi a"], ["Hi an"], ["Hi and"]]


async def test_a_failure_in_a_stream_is_its_last_line(client, engine):
    engine.dies_after = 2
    reply = await client.post("/generate", json={"prompt": "Hi ", "stream": True})
    *texts, last = [json.loads(line) for line in reply.text.splitlines()]
    assert texts == [{"text": ["Hi a"]}, {"text": ["Hi an"]}]
    assert last["error"]["type"] == "EngineDeadError"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "prompt"),
        ({"prompt": ["a"]}, "prompt"),
        ({"prompt": "a", "stream": 1}, "stream"),
        ({"prompt": "a", "temperature": -1}, "temperature"),
        ({"prompt": "a", "temperatur": 1}, "temperatur"),
        ({"prompt": "a", "output_kind": 1}, "output_kind"),
        ({"prompt": "a", "n": []}, None),
    ],
)
async def test_what_is_wrong_is_a_400_that_names_the_field(client, body, param):
    reply = await client.post("/generate", json=body)
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["param"] == param


async def test_a_body_needs_no_content_type_but_must_be_json(client):
    reply = await client.post("/generate", content=b'{"prompt": "Hi ", "max_tokens": 3}')
    assert reply.json() == {"text": ["Hi and"]}
    for body in (b"prompt=Hi", b"[1]", b"\xff", b"[" * 100_000):
        reply = await client.post("/generate", content=body)
        assert reply.status_code == 400, reply.text
        assert "the request body" in reply.json()["error"]["message"]


async def test_health_is_that_of_the_engine(client, engine):
    assert (await client.get("/health")).status_code == 200
    engine.is_dead = True
    assert (await client.get("/health")).status_code == 503


def test_a_server_without_a_model_says_what_to_do(capsys):
    assert main(["--port", "0", "--host", "127.0.0.1"]) == 2
    assert "examples/models/tiny-story" in capsys.readouterr().err
