import asyncio
from contextlib import asynccontextmanager

import httpx
import pytest

from tests.entrypoints.openai.sse import events_of
from vllm.entrypoints.openai import app as app_module
from vllm.messages.shapes import ShapeUsage

pytestmark = pytest.mark.asyncio
HELLO = [{"role": "user", "content": "Hello"}]


@asynccontextmanager
async def connect(app):
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
        yield client


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ({"messages": HELLO, "max_tokens": 3}, "chat.completion"),
        ({"prompt": "Hi", "max_tokens": 3}, "text_completion"),
    ],
)
async def test_an_invocation_is_a_chat_or_a_completion_by_its_body(client, body, kind):
    answer = (await client.post("/invocations", json=body)).json()
    assert answer["object"] == kind
    assert answer["usage"]["completion_tokens"] == 3
    pieces = events_of((await client.post("/invocations", json={**body, "stream": True})).text)
    assert all(piece["object"].startswith(kind) for piece in pieces)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": "Hi", "max_tokens": "many"}, "max_tokens"),
        ({"prompt": [["a"]]}, "prompt"),
        ({"messages": [{"content": "Hi"}]}, "messages[0].role"),
        ({"messages": HELLO, "top_p": 2}, "top_p"),
        ({"input": "Hi"}, None),
        ({}, None),
        ([], None),
    ],
)
async def test_a_wrong_invocation_is_a_400_that_names_the_field(client, body, param):
    reply = await client.post("/invocations", json=body)
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["type"] == "BadRequestError"
    assert (reply.json()["error"]["param"] or "").startswith(param or "")
    assert (param is None) == (reply.json()["error"]["param"] is None)


async def test_unknown_paths_and_methods_have_errors_of_openais_shape(client):
    for method, path, status, kind in (
        ("GET", "/v1/nothing", 404, "NotFoundError"),
        ("GET", "/v1/completions", 405, "MethodNotAllowedError"),
    ):
        reply = await client.request(method, path)
        assert reply.status_code == status
        error = reply.json()["error"]
        assert (error["type"], error["code"]) == (kind, status)
        assert error["message"]


async def test_the_tokenizer_is_described_where_that_is_offered(make_app, engine):
    async with connect(make_app()) as client:
        assert (await client.get("/tokenizer_info")).status_code == 404
    async with connect(make_app(enable_tokenizer_info_endpoint=True)) as client:
        info = (await client.get("/tokenizer_info")).json()
    assert info["tokenizer_class"] == type(engine.tokenizer).__name__
    assert info["chat_template"] == engine.tokenizer.chat_template


DEVELOPMENT = [
    ("POST", "/reset_prefix_cache"),
    ("GET", "/server_info"),
    ("POST", "/sleep"),
    ("POST", "/wake_up"),
    ("GET", "/is_sleeping"),
    ("POST", "/collective_rpc"),
]


async def test_development_routes_exist_in_development_mode_only(make_app, engine, monkeypatch):
    async with connect(make_app()) as client:
        for method, path in DEVELOPMENT:
            assert (await client.request(method, path)).status_code == 404
    monkeypatch.setenv("VLLM_SERVER_DEV_MODE", "1")
    async with connect(make_app()) as client:
        for method, path in DEVELOPMENT[:2]:
            assert (await client.request(method, path)).status_code == 200
        assert "fake" in (await client.get("/server_info")).json()["vllm_config"]
        reply = await client.get("/server_info?config_format=xml")
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, "config_format")
        for method, path in DEVELOPMENT[2:]:
            reply = await client.request(method, path)
            assert reply.status_code == 400
            assert "not available" in reply.json()["error"]["message"]
    assert engine.num_resets == 1


async def test_scaling_a_running_engine_is_refused_with_what_to_do_instead(client):
    for path in ("/scale_elastic_ep", "/is_scaling_elastic_ep"):
        reply = await client.post(path, json={"new_data_parallel_size": 4})
        assert reply.status_code == 400
        message = reply.json()["error"]["message"]
        assert "--data-parallel-size" in message and "examples/deploy/ray_serve.py" in message


# What is asked of each route, so that it answers with 200 (or, in the first lines, cannot).
ASKED = {
    "POST /sleep": {},
    "POST /wake_up": {},
    "GET /is_sleeping": {},
    "POST /collective_rpc": {},
    "POST /scale_elastic_ep": {},
    "POST /is_scaling_elastic_ep": {},
    "GET /health": {},
    "GET /ping": {},
    "POST /ping": {},
    "GET /metrics": {},
    "GET /load": {},
    "GET /version": {},
    "GET /v1/models": {},
    "GET /v1/models/{model}": {},
    "POST /start_profile": {},
    "POST /stop_profile": {},
    "POST /reset_prefix_cache": {},
    "GET /server_info": {},
    "GET /tokenizer_info": {},
    "POST /tokenize": {"prompt": "Hi"},
    "POST /detokenize": {"tokens": [1]},
    "POST /v1/completions": {"prompt": "Hi"},
    "POST /v1/chat/completions": {"messages": HELLO},
    "POST /invocations": {"prompt": "Hi"},
    "POST /v1/messages": {"messages": HELLO, "max_tokens": 3},
    "POST /v1/messages/count_tokens": {"messages": HELLO},
    "POST /v1/responses": {"input": "Hi", "request_id": "resp_1", "background": True},
    "GET /v1/responses/{response_id}": {},
    "GET /v1/responses/{response_id}/input_items": {},
    "POST /v1/responses/{response_id}/cancel": {},
    "DELETE /v1/responses/{response_id}": {},
}
STREAMING = {
    "POST /v1/completions",
    "POST /v1/chat/completions",
    "POST /invocations",
    "POST /v1/messages",
    "POST /v1/responses",
}


async def test_the_schema_says_what_every_route_answers_with(make_app, monkeypatch):
    monkeypatch.setenv("VLLM_SERVER_DEV_MODE", "1")
    async with connect(make_app(enable_tokenizer_info_endpoint=True)) as client:
        paths = (await client.get("/openapi.json")).json()["paths"]
        documented = {
            f"{method.upper()} {path}": answers["responses"]
            for path, methods in paths.items()
            for method, answers in methods.items()
        }
        assert set(documented) == set(ASKED)
        for route, body in ASKED.items():
            method, path = route.split(" ")
            path = path.replace("{model}", "fake").replace("{response_id}", "resp_1")
            reply = await client.request(method, path, json=body or None)
            said = documented[route].get(str(reply.status_code))
            assert said is not None, (route, reply.status_code, reply.text)
            kinds = {kind.partition(";")[0] for kind in said.get("content", {})}
            kind = reply.headers.get("content-type", "").partition(";")[0]
            assert (kind in kinds) if reply.content else (not kinds), (route, kind, kinds)
            if route in STREAMING:
                streamed = {**body, "stream": True, "request_id": "streamed"}
                reply = await client.request(method, path, json=streamed)
                assert reply.headers["content-type"].partition(";")[0] in kinds, route


async def test_the_schema_says_that_health_may_be_503(client, engine):
    engine.is_dead = True
    paths = (await client.get("/openapi.json")).json()["paths"]
    for path in ("/health", "/ping"):
        reply = await client.get(path)
        assert (reply.status_code, reply.json()["error"]["type"]) == (503, "EngineDeadError")
        assert list(paths[path]["get"]["responses"]["503"]["content"]) == ["application/json"]


async def test_a_profile_is_started_and_stopped_once(client, engine):
    for path, status in (
        ("/stop_profile", 400),
        ("/start_profile", 200),
        ("/start_profile", 400),
        ("/stop_profile", 200),
    ):
        reply = await client.post(path)
        assert reply.status_code == status, path
        assert status == 200 or "recorded" in reply.json()["error"]["message"]
    assert not engine.is_profiled


async def test_metrics_show_the_shapes_that_the_engine_counts(client, engine):
    assert "hpu_bucket" not in (await client.get("/metrics")).text
    engine.shapes = [ShapeUsage("decode", 8, 1, 128, hits=3)]
    line = 'vllm:hpu_bucket_hits_total{bucket="8x1x128",engine="0",model_name="fake",'
    line += 'phase="decode"} 3.0'
    assert line in (await client.get("/metrics")).text
    engine.is_dead = True
    assert line in (await client.get("/metrics")).text


async def test_metrics_of_several_engines_are_shown_apart(make_app, engine):
    engine.client.cores *= 2
    engine.shapes = [ShapeUsage("decode", 8, 1, 128, hits=3)]
    engine.silent_s = 1.5
    async with connect(make_app()) as client:
        text = (await client.get("/metrics")).text
    for number in range(2):
        labels = f'engine="{number}",model_name="fake"'
        assert f"vllm:engine_silence_seconds{{{labels}}} 1.5\n" in text
        assert f'vllm:hpu_bucket_hits_total{{bucket="8x1x128",{labels},phase="decode"}} 3.0' in text


async def test_metrics_do_not_wait_for_an_engine_in_a_long_step(client, engine, monkeypatch):
    async def never():
        await asyncio.Event().wait()

    monkeypatch.setattr(engine, "launch_shapes", never)
    monkeypatch.setattr(app_module, "SHAPES_LIMIT_S", 0.01)
    assert (await client.get("/metrics")).status_code == 200


async def test_any_served_name_may_be_asked_for_and_is_answered_with(client):
    for name in ("fake", "alias"):
        reply = await client.post("/v1/completions", json={"model": name, "prompt": "a"})
        assert reply.json()["model"] == name
    assert (await client.post("/v1/completions", json={"prompt": "a"})).json()["model"] == "fake"
    cards = (await client.get("/v1/models")).json()["data"]
    assert [card["id"] for card in cards] == ["fake", "alias"]
    for card in cards:  # older clients read it
        (permission,) = card["permission"]
        assert permission["object"] == "model_permission"
        assert permission["allow_sampling"] and not permission["allow_fine_tuning"]
    assert (await client.get("/v1/models/alias")).json()["id"] == "alias"
    reply = await client.post("/v1/completions", json={"model": "other", "prompt": "a"})
    assert (reply.status_code, reply.json()["error"]["type"]) == (404, "NotFoundError")


STREAMED = [
    ("/v1/completions", {"prompt": "Hi", "max_tokens": 2, "stream": True}),
    ("/v1/chat/completions", {"messages": HELLO, "max_tokens": 2, "stream": True}),
]


@pytest.mark.parametrize(("path", "body"), STREAMED)
async def test_usage_can_be_forced_on_every_stream(make_app, path, body):
    async with connect(make_app(enable_force_include_usage=True)) as client:
        *_, last = events_of((await client.post(path, json=body)).text)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 2


@pytest.mark.parametrize(("path", "body"), STREAMED)
async def test_cached_prompt_tokens_are_told_where_that_is_enabled(make_app, path, body):
    body = {**body, "stream": False}
    for enabled, details in ((True, {"cached_tokens": 2}), (False, None)):
        async with connect(make_app(enable_prompt_tokens_details=enabled)) as client:
            usage = (await client.post(path, json=body)).json()["usage"]
        assert usage["prompt_tokens_details"] == details


async def test_tokens_are_written_as_ids_where_the_server_says_so(make_app):
    async with connect(make_app(return_tokens_as_token_ids=True)) as client:
        body = {"prompt": "Hi", "max_tokens": 1, "logprobs": 0}
        reply = (await client.post("/v1/completions", json=body)).json()
        assert reply["choices"][0]["logprobs"]["tokens"][0].startswith("token_id:")
        body = {"messages": HELLO, "max_tokens": 1, "logprobs": True}
        reply = (await client.post("/v1/chat/completions", json=body)).json()
        first = reply["choices"][0]["logprobs"]["content"][0]
        assert first["token"].startswith("token_id:")


async def test_load_counts_the_requests_being_answered(make_app, engine):
    engine.may_go.clear()
    async with connect(make_app()) as client:
        open_request = asyncio.create_task(
            client.post("/v1/completions", json={"prompt": "a", "max_tokens": 20})
        )
        while not engine.running:
            await asyncio.sleep(0.001)
        assert (await client.get("/load")).json() == {"server_load": 1}
        engine.may_go.set()
        await open_request
        assert (await client.get("/load")).json() == {"server_load": 0}


@pytest.mark.parametrize(("limit", "shown"), [(None, 26), (4, 4), (0, 0)])
async def test_logged_requests_show_as_much_of_a_prompt_as_they_may(
    make_app, log_lines, limit, shown
):
    prompt = "abcdefghijklmnopqrstuvwxyz"
    async with connect(make_app(enable_log_requests=True, max_log_len=limit)) as client:
        await client.post("/v1/completions", json={"prompt": prompt, "request_id": "mine"})
    (line,) = [text for text in log_lines.text.splitlines() if text.startswith("request ")]
    assert line.startswith("request cmpl-mine: ")
    assert f"prompt {prompt[:shown]!r}, token ids " in line
    assert line.partition("token ids [")[2].partition("]")[0].count(",") == max(0, shown - 1)
    assert "max_tokens=16" in line


async def test_requests_are_not_logged_unless_asked_for(client, log_lines):
    await client.post("/v1/completions", json={"prompt": "secret"})
    assert "secret" not in log_lines.text


@pytest.mark.parametrize("stream", [False, True])
async def test_outputs_are_logged_whole_where_asked_for(make_app, log_lines, stream):
    body = {"prompt": "Hi", "max_tokens": 7, "n": 2, "request_id": "mine", "stream": stream}
    async with connect(make_app(enable_log_outputs=True, max_log_len=5)) as client:
        await client.post("/v1/completions", json=body)
    lines = [text for text in log_lines.text.splitlines() if "ended with" in text]
    assert lines == [
        f"request cmpl-mine: prompt 0, sequence {i} ended with length: 'and t'" for i in range(2)
    ]
