import pytest

from vllm.entrypoints.openai.protocol import common
from vllm.errors import EngineDeadError

PATH = "/v1/completions"
JSON = {"content-type": "application/json"}
pytestmark = pytest.mark.asyncio


async def error(client, status, path=PATH, **request):
    response = await client.post(path, **request)
    assert response.status_code == status, response.text
    body = response.json()["error"]
    assert set(body) == {"message", "type", "param", "code"}
    assert body["code"] == status
    return body


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a", ""]}, "prompt"),
        ({"prompt": 3}, "prompt"),
        ({"prompt": ["a", 3]}, "prompt"),
        ({"prompt": "a", "n": 0}, "n"),
        ({"prompt": "a", "n": 10**9}, "n"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "a", "max_tokens": -1}, "max_tokens"),
        ({"prompt": "a", "max_tokens": "many"}, "max_tokens"),
        ({"prompt": "a", "temperature": -1}, "temperature"),
        ({"prompt": "a", "top_p": 0}, "top_p"),
        ({"prompt": "a", "stop": [1]}, "stop"),
        ({"prompt": "a", "stop": ""}, "stop"),
        ({"prompt": "a", "logit_bias": {"x": 1}}, "logit_bias"),
        ({"prompt": "a", "stream_options": {"include_usage": True}}, "stream_options"),
        ({"prompt": ["a", [1]]}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [[1], ["a"]]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": "a", "best_of": 10**9}, "best_of"),
        ({"prompt_embeds": "AAAA"}, "prompt_embeds"),
        ({"prompt": "a", "suffix": "b"}, "suffix"),
        ({"prompt": "a", "kv_transfer_params": {"a": 1}}, "kv_transfer_params"),
        ({"prompt": "a", "vllm_xargs": {"a": 1}}, "vllm_xargs"),
        ({"prompt": "a", "n": 1, "best_of": 2, "stream": True}, "best_of"),
        ({"prompt": "a", "n": 2, "best_of": 1}, "best_of"),
        ({"prompt": "a", "length_penalty": 2.0}, "length_penalty"),
        ({"prompt": "a", "early_stopping": True}, "early_stopping"),
        ({"prompt": "a", "use_beam_search": True, "stream": True}, "use_beam_search"),
        ({"prompt": "a", "use_beam_search": True, "top_k": 3}, "top_k"),
        ({"prompt": "a", "use_beam_search": True, "stop": ["x"]}, "stop"),
        ({"prompt": "a", "use_beam_search": True, "prompt_logprobs": 0}, "prompt_logprobs"),
        ({"prompt": "a", "use_beam_search": True, "n": 11}, "n"),
        ({"prompt": "a", "use_beam_search": True, "best_of": 11}, "best_of"),
        ({"prompt": "a", "use_beam_search": True, "temperature": 0.5}, "temperature"),
        ({"prompt": "a", "use_beam_search": True, "length_penalty": 1e300}, "length_penalty"),
        ({"prompt": "a", "suffix": "b"}, "suffix"),
        ({"prompt": "a", "cache_salt": ""}, "cache_salt"),
        ({"prompt": "a", "best_of": 1, "n": 2}, "best_of"),
        ({"prompt": "a", "seed": 2**70}, "seed"),
    ],
)
async def test_a_wrong_field_is_named(client, engine, fields, param):
    assert (await error(client, 400, json=fields))["param"] == param
    assert not engine.seen


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
async def test_a_number_that_is_not_finite_is_named(client, number):
    body = f'{{"prompt": "a", "temperature": {number}}}'.encode()
    assert (await error(client, 400, content=body, headers=JSON))["param"] == "temperature"


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'"text"', b"null", b'{"prompt": "\xff"}', b"[" * 100_000]
)
async def test_a_body_that_is_no_json_object_is_refused(client, body):
    await error(client, 400, content=body, headers=JSON)


async def test_a_body_that_is_not_announced_as_json_says_so(client):
    reply = await error(
        client, 400, content=b'{"prompt": "a"}', headers={"content-type": "text/plain"}
    )
    assert "Content-Type" in reply["message"]


async def test_an_unknown_model_is_not_found(client):
    reply = await error(client, 404, json={"model": "gpt", "prompt": "a"})
    assert reply["param"] == "model"
    assert "'fake'" in reply["message"]


async def test_an_unknown_route_answers_in_the_same_shape(client):
    await error(client, 404, path="/v1/nothing", json={})


async def test_an_unknown_field_is_logged_once(client, monkeypatch, caplog):
    monkeypatch.setattr(common, "_warned_fields", set())
    for _ in range(2):
        assert (await client.post(PATH, json={"prompt": "a", "topk": 3})).status_code == 200
    assert [record.getMessage() for record in caplog.records].count(
        "CompletionRequest: unknown field 'topk' is ignored"
    ) == 1


async def test_our_own_mistake_is_a_500_and_the_server_goes_on(client, engine):
    engine.raises = AssertionError("secret detail")
    reply = await error(client, 500, json={"prompt": "a"})
    assert "secret" not in reply["message"]
    engine.raises = None
    assert (await client.post(PATH, json={"prompt": "a"})).status_code == 200


async def test_a_dead_engine_is_503_and_unhealthy(client, engine):
    engine.is_dead = True
    engine.raises = EngineDeadError("the engine core is gone")
    assert (await error(client, 503, json={"prompt": "a"}))["type"] == "EngineDeadError"
    assert (await client.get("/health")).status_code == 503


async def test_a_hung_engine_is_unhealthy_until_it_goes_on(client, engine):
    engine.silent_s = 31.5
    response = await client.get("/health")
    assert response.status_code == 503
    assert response.json()["error"]["type"] == "EngineHungError"
    assert "vllm:engine_silence_seconds{" in (text := (await client.get("/metrics")).text)
    assert " 31.5\n" in text
    engine.silent_s = 0.5
    assert (await client.get("/health")).status_code == 200


async def test_engine_death_ends_an_open_stream_with_an_error_event(client, engine):
    engine.dies_after = 2
    response = await client.post(PATH, json={"prompt": "a", "stream": True})
    assert response.status_code == 200
    *_, failure, done = response.text.strip().split("\n\n")
    assert '"type":"EngineDeadError"' in failure
    assert done == "data: [DONE]"


MESSAGES = '"messages": [{"role": "user", "content": "x"}], "max_tokens": 3'
SCHEMA = '{"type": "object", "properties": {"a": {"maximum": VALUE}}}'


@pytest.mark.parametrize("value", ["NaN", "-Infinity", "1e999", '"\\ud83d"'])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        (PATH, '{"prompt": "a", "unheard": {"of": [VALUE]}}'),
        (PATH, '{"prompt": "a", "cache_salt": VALUE}'),
        (PATH, '{"prompt": [VALUE]}'),
        (PATH, '{"prompt": "a", "logit_bias": {"1": VALUE}}'),
        (PATH, '{"prompt": "a", "structured_outputs": {"json": SCHEMA}}'),
        ("/invocations", '{"prompt": "a", "structured_outputs": {"json": SCHEMA}}'),
        ("/v1/chat/completions", '{MESSAGES, "chat_template_kwargs": {"a": VALUE}}'),
        (
            "/v1/chat/completions",
            '{MESSAGES, "tools": [{"type": "function", "function": {"name": "f", "parameters": '
            'SCHEMA}}], "tool_choice": "required"}',
        ),
        (
            "/v1/chat/completions",
            '{MESSAGES, "response_format": {"type": "json_schema", "json_schema": {"name": "x", '
            '"schema": SCHEMA}}}',
        ),
        ("/v1/responses", '{"input": "x", "metadata": {"a": VALUE}}'),
        (
            "/v1/responses",
            '{"input": "x", "tools": [{"type": "function", "name": "f", "parameters": SCHEMA}]}',
        ),
        ("/v1/messages", '{MESSAGES, "tools": [{"name": "f", "input_schema": SCHEMA}]}'),
        (
            "/v1/messages/count_tokens",
            '{MESSAGES, "tools": [{"name": "f", "input_schema": SCHEMA}]}',
        ),
        ("/tokenize", '{"prompt": "x", "y": VALUE}'),
        ("/detokenize", '{"tokens": [1], "y": VALUE}'),
    ],
)
async def test_what_only_a_lax_reader_takes_for_json_is_a_400(client, engine, path, body, value):
    body = body.replace("MESSAGES", MESSAGES).replace("SCHEMA", SCHEMA).replace("VALUE", value)
    response = await client.post(path, content=body, headers=JSON)
    assert response.status_code == 400, response.text
    said = response.json()["error"]["message"]
    assert "lone surrogate" in said or "must be finite" in said
    assert not engine.seen


@pytest.mark.parametrize("path", [PATH, "/tokenize"])
async def test_a_lone_surrogate_in_a_name_is_a_400(client, path):
    body = '{"prompt": "a", "unheard\\ud83d": 1e999}'
    assert (await client.post(path, content=body, headers=JSON)).status_code == 400
