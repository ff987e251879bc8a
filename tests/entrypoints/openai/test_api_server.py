import httpx
import pytest

from vllm.version import __version__

pytestmark = pytest.mark.asyncio


def connect(app):
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://server")


async def test_models_are_listed_under_every_name(client):
    models = (await client.get("/v1/models")).json()
    assert [card["id"] for card in models["data"]] == ["fake", "alias"]
    assert models["data"][0]["max_model_len"] == 4096
    assert (await client.get("/v1/models/alias")).json()["id"] == "alias"
    assert (await client.get("/v1/models/other")).status_code == 404


async def test_an_answer_names_the_model_as_the_client_did(client):
    answer = await client.post("/v1/completions", json={"model": "alias", "prompt": "a"})
    assert answer.json()["model"] == "alias"


async def test_small_routes_answer(client):
    assert (await client.get("/health")).status_code == 200
    assert (await client.get("/ping")).status_code == 200
    assert (await client.post("/ping")).status_code == 200
    assert (await client.get("/version")).json() == {"version": __version__}
    assert (await client.get("/load")).json() == {"server_load": 0}
    assert "vllm:num_requests_running" in (await client.get("/metrics")).text


async def test_text_survives_tokenize_and_detokenize(client):
    text = "Straße, 猫 🐈"
    tokens = (await client.post("/tokenize", json={"prompt": text})).json()
    assert tokens["count"] == len(tokens["tokens"]) == len(text.encode())
    reply = await client.post("/detokenize", json={"tokens": tokens["tokens"]})
    assert reply.json()["prompt"] == text


async def test_tokenize_renders_a_chat_as_generation_would(client, engine):
    messages = [{"role": "user", "content": "Hi"}]
    reply = await client.post("/tokenize", json={"messages": messages, "return_token_strs": True})
    await client.post("/v1/chat/completions", json={"messages": messages})
    assert reply.json()["tokens"] == engine.seen[0][0]["prompt_token_ids"]
    assert reply.json()["token_strs"][0] == "<"


@pytest.mark.parametrize("body", [{}, {"prompt": "a", "messages": []}])
async def test_tokenize_wants_a_prompt_or_messages(client, body):
    assert (await client.post("/tokenize", json=body)).status_code == 400


@pytest.mark.parametrize("tokens", [[-1], [256], [1.5], "x"])
async def test_detokenize_refuses_what_is_no_token(client, tokens):
    reply = await client.post("/detokenize", json={"tokens": tokens})
    assert reply.status_code == 400
    assert reply.json()["error"]["param"].startswith("tokens")


async def test_a_key_is_needed_when_there_is_one(make_app):
    body = {"prompt": "a"}
    async with connect(make_app(api_key=("one", "two"))) as client:
        for headers in (
            None,
            {"authorization": "Bearer thr\u00e9e".encode()},
            {"authorization": "one"},
        ):
            reply = await client.post("/v1/completions", json=body, headers=headers)
            assert reply.status_code == 401
            assert reply.json()["error"]["type"] == "AuthenticationError"
        for key in ("one", "two"):
            headers = {"Authorization": f"Bearer {key}"}
            reply = await client.post("/v1/completions", json=body, headers=headers)
            assert reply.status_code == 200
        assert (await client.post("/tokenize", json=body)).status_code == 401
        assert (await client.get("/health")).status_code == 200
        assert (await client.get("/metrics")).status_code == 200


async def test_request_ids_are_returned_when_asked_for(make_app):
    async with connect(make_app(enable_request_id_headers=True)) as client:
        reply = await client.get("/version", headers={"X-Request-Id": "mine"})
        assert reply.headers["x-request-id"] == "mine"
        assert (await client.get("/version")).headers["x-request-id"]


async def test_documentation_can_be_switched_off(make_app):
    async with connect(make_app(disable_fastapi_docs=True)) as client:
        assert (await client.get("/docs")).status_code == 404
        assert (await client.get("/openapi.json")).status_code == 404
    async with connect(make_app()) as client:
        assert "/v1/completions" in (await client.get("/openapi.json")).json()["paths"]


async def test_browsers_of_allowed_origins_may_use_the_server(make_app):
    async with connect(make_app(allowed_origins=("https://a.example",))) as client:
        for origin, allowed in (("https://a.example", True), ("https://b.example", False)):
            reply = await client.get("/version", headers={"Origin": origin})
            assert ("access-control-allow-origin" in reply.headers) is allowed
