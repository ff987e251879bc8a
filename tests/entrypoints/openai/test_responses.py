"""/v1/responses on an engine that answers at once and exactly."""

import asyncio
import json

import httpx
import pytest
import pytest_asyncio

from vllm.entrypoints.openai.protocol.responses import ResponsesRequest
from vllm.entrypoints.openai.serving.response_input import Conversation
from vllm.entrypoints.openai.serving.response_store import ResponseStore
from vllm.errors import EngineDeadError

TEXT = "and they lived happily."
TOOL = {"type": "function", "name": "weather", "parameters": {"type": "object"}}
CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Ulm"}}</tool_call>'
LOGPROBS = ["message.output_text.logprobs"]


def client_of(app):
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://server")


@pytest.fixture
def app(make_app):
    return make_app()


@pytest_asyncio.fixture
async def client(app):
    async with client_of(app) as client:
        yield client


@pytest_asyncio.fixture
async def clever(make_app):
    """A server whose model reasons and calls functions."""
    flags = {"tool_call_parser": "hermes", "reasoning_parser": "qwen3"}
    async with client_of(make_app(enable_auto_tool_choice=True, **flags)) as client:
        yield client


async def post(client, body="hi", **more):
    response = await client.post("/v1/responses", json={"input": body, **more})
    assert response.status_code == 200, response.text
    return response.json()


async def get(client, path):
    response = await client.get(f"/v1/responses/{path}")
    assert response.status_code == 200, response.text
    return response.json()


def events_of(response):
    assert response.status_code == 200, response.text
    events = []
    for event in response.text.strip().split("\n\n"):
        name, data = event.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    return events


async def stream(client, body="hi", **more):
    response = await client.post("/v1/responses", json={"input": body, "stream": True, **more})
    events = events_of(response)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


async def ended(client, response_id):
    """Once it has; the engine of these tests needs a few turns of the loop."""
    while (response := await get(client, response_id))["status"] in ("queued", "in_progress"):
        await asyncio.sleep(0.005)
    return response


async def test_an_answer_has_an_item_and_its_usage(client):
    response = await post(client, metadata={"a": "b"})
    (item,) = response["output"]
    assert (item["type"], item["role"], item["status"]) == ("message", "assistant", "completed")
    assert item["content"][0]["text"] == TEXT
    assert (response["object"], response["status"]) == ("response", "completed")
    assert response["metadata"] == {"a": "b"}
    usage = response["usage"]
    assert (usage["output_tokens"], usage["input_tokens_details"]["cached_tokens"]) == (23, 2)


async def test_a_stream_ends_with_the_response_it_tells_of(client):
    events = await stream(client, max_output_tokens=3)
    names = [event["type"].removeprefix("response.") for event in events]
    assert names[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert names[4:7] == ["output_text.delta"] * 3
    assert names[7:] == ["output_text.done", "content_part.done", "output_item.done", "incomplete"]
    last = events[-1]["response"]
    assert last["incomplete_details"] == {"reason": "max_output_tokens"}
    assert last == await get(client, last["id"])


async def test_a_conversation_goes_on_from_what_is_kept(client, engine):
    first = await post(client, instructions="Be kind.")
    await post(client, "more", previous_response_id=first["id"])
    # Instructions are those of one response.
    assert engine.seen[-1][0]["prompt"] == f"<user>hi<assistant>{TEXT}<user>more<assistant>"
    item = {"type": "item_reference", "id": first["output"][0]["id"]}
    await post(client, [item, {"role": "user", "content": "more"}])
    assert engine.seen[-1][0]["prompt"] == f"<assistant>{TEXT}<user>more<assistant>"


async def test_items_of_every_kind_reach_the_template(client, engine):
    await post(
        client,
        [
            {"role": "developer", "content": [{"type": "input_text", "text": "Be kind."}]},
            {"role": "user", "content": "weather?"},
            {"type": "reasoning", "summary": [], "content": [text("reasoning_text", "hm")]},
            {"type": "message", "role": "assistant", "content": [text("output_text", "See:")]},
            {"type": "function_call", "call_id": "c", "name": "weather", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": "rain"},
        ],
    )
    prompt = engine.seen[-1][0]["prompt"]
    assert prompt.endswith("Be kind.<user>weather?<assistant>See:<tool>rain<assistant>")


def text(kind, value):
    return {"type": kind, "text": value}


@pytest.mark.parametrize("streamed", [False, True])
async def test_reasoning_text_and_calls_are_items_of_their_own(clever, engine, streamed):
    engine.text = f"<think>hm, hm</think>So:{CALL}{CALL.replace('Ulm', 'Bonn')}"
    asked = {"tools": [TOOL], "max_output_tokens": 1000}
    if streamed:
        response = (await stream(clever, **asked))[-1]["response"]
    else:
        response = await post(clever, **asked)
    output = response["output"]
    kinds = ["reasoning", "message", "function_call", "function_call"]
    assert [item["type"] for item in output] == kinds
    assert output[0]["content"][0]["text"] == "hm, hm"
    assert output[1]["content"][0]["text"] == "So:"
    cities = [json.loads(item["arguments"])["city"] for item in output[2:]]
    assert cities == ["Ulm", "Bonn"]
    assert output[2]["call_id"] != output[3]["call_id"]
    assert response["usage"]["output_tokens_details"]["reasoning_tokens"] == len("hm, hm")
    outputs = [
        {"type": "function_call_output", "call_id": item["call_id"], "output": "rain"}
        for item in output[2:]
    ]
    engine.text = "It rains."
    answer = await post(clever, outputs, previous_response_id=response["id"])
    assert answer["output"][0]["content"][0]["text"] == "It rains."


async def test_log_probabilities_come_with_the_text_if_they_are_included(client):
    events = await stream(client, include=LOGPROBS, top_logprobs=1, max_output_tokens=3)
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]
    assert [event["logprobs"][0]["token"] for event in deltas] == ["a", "n", "d"]
    assert all(len(event["logprobs"][0]["top_logprobs"]) == 1 for event in deltas)
    part = events[-1]["response"]["output"][0]["content"][0]
    assert part["logprobs"] == [event["logprobs"][0] for event in deltas]


async def test_a_background_response_runs_on_and_can_be_read_again(client, engine):
    engine.gap_s = 0.001
    queued = await post(client, background=True)
    assert (queued["status"], queued["output"]) == ("queued", [])
    response = await ended(client, queued["id"])
    assert response["status"] == "completed"
    assert response["output"][0]["content"][0]["text"] == TEXT


async def test_a_background_stream_can_be_replayed_from_any_event(client, engine):
    events = await stream(client, background=True)
    assert [event["type"] for event in events[:3]] == [
        "response.created",
        "response.queued",
        "response.in_progress",
    ]
    response_id = events[0]["response"]["id"]
    path = f"/v1/responses/{response_id}?stream=true"
    assert events_of(await client.get(path)) == events
    assert events_of(await client.get(f"{path}&starting_after=4")) == events[5:]


async def test_a_background_response_can_be_cancelled_and_deleted(client, engine):
    engine.gap_s = 30
    for wait in (0, 0.02):
        queued = await post(client, background=True)
        await asyncio.sleep(wait)
        cancelled = await client.post(f"/v1/responses/{queued['id']}/cancel")
        assert cancelled.json()["status"] == "cancelled"
    assert not engine.running
    deleted = await client.delete(f"/v1/responses/{queued['id']}")
    assert deleted.json() == {"id": queued["id"], "object": "response", "deleted": True}
    assert (await client.get(f"/v1/responses/{queued['id']}")).status_code == 404


async def test_a_background_response_that_fails_says_why(client, engine):
    engine.dies_after = 2
    queued = await post(client, background=True)
    response = await ended(client, queued["id"])
    assert response["status"] == "failed"
    assert response["error"]["code"] == "server_error"


async def test_a_failure_in_a_stream_is_its_last_event(client, engine, app):
    engine.dies_after = 2
    events = await stream(client)
    assert events[-1]["type"] == "response.failed"
    assert events[-1]["response"]["output"][0]["content"][0]["text"] == "an"
    engine.raises = EngineDeadError("gone")
    response = await client.post("/v1/responses", json={"input": "hi", "stream": True})
    assert response.status_code == 503
    assert not app.state.server.responses.store.records


async def test_input_items_are_listed_in_pages(client):
    items = [{"role": "user", "content": str(i)} for i in range(5)]
    response = await post(client, items)
    page = await get(client, f"{response['id']}/input_items?limit=2&order=asc")
    assert ([item["content"] for item in page["data"]], page["has_more"]) == (["0", "1"], True)
    path = f"{response['id']}/input_items?order=asc&after={page['last_id']}"
    rest = await get(client, path)
    assert ([item["content"] for item in rest["data"]], rest["has_more"]) == (list("234"), False)


async def test_the_store_is_bounded_and_forgets_what_was_used_least(client, app):
    serving = app.state.server.responses
    serving.store = ResponseStore(max_responses=2)
    ids = [(await post(client))["id"] for _ in range(2)]
    await get(client, ids[0])
    ids.append((await post(client))["id"])
    found = [(await client.get(f"/v1/responses/{name}")).status_code for name in ids]
    assert found == [200, 404, 200]
    serving.store = ResponseStore(max_bytes=10)
    last = await post(client)
    assert (await client.get(f"/v1/responses/{last['id']}")).status_code == 404
    assert serving.store.num_bytes == 0


async def test_no_more_run_in_the_background_than_may(client, app, engine):
    engine.gap_s = 30
    app.state.server.responses.store = ResponseStore(max_running=1)
    running = await post(client, background=True)
    response = await client.post("/v1/responses", json={"input": "hi", "background": True})
    assert (response.status_code, "retry-after" in response.headers) == (503, True)
    await client.post(f"/v1/responses/{running['id']}/cancel")


async def test_nothing_is_kept_if_the_client_or_the_operator_says_so(client, monkeypatch):
    response = await post(client, store=False)
    assert response["store"] is False
    assert (await client.get(f"/v1/responses/{response['id']}")).status_code == 404
    monkeypatch.setenv("VLLM_ENABLE_RESPONSES_API_STORE", "0")
    response = await post(client)
    assert response["store"] is False
    assert (await client.get(f"/v1/responses/{response['id']}")).status_code == 404
    refused = await client.post("/v1/responses", json={"input": "hi", "background": True})
    assert refused.status_code == 400
    assert "VLLM_ENABLE_RESPONSES_API_STORE" in refused.json()["error"]["message"]


async def test_several_api_servers_refuse_what_only_one_would_know(make_app):
    async with client_of(make_app(api_server_count=2)) as client:
        assert (await post(client))["store"] is False
        for change in ({"background": True}, {"store": True}, {"previous_response_id": "resp_x"}):
            response = await client.post("/v1/responses", json={"input": "hi", **change})
            assert response.status_code == 400
            assert "--api-server-count" in response.json()["error"]["message"]


async def test_a_client_that_goes_away_ends_its_response(app, engine):
    engine.gap_s = 0.001
    serving = app.state.server.responses
    stream = await serving.stream(ResponsesRequest(input="hi", stream=True), None)
    await anext(stream)
    assert len(serving.store.records) == 1
    await stream.aclose()
    assert (len(engine.aborted), engine.running) == (1, set())
    assert not serving.store.records


async def test_a_background_stream_outlives_its_reader(app, engine):
    engine.gap_s = 0.001
    serving = app.state.server.responses
    asked = ResponsesRequest(input="hi", stream=True, background=True)
    stream = await serving.stream(asked, None)
    await anext(stream)
    await stream.aclose()
    (record,) = serving.store.records.values()
    assert record.task is not None
    await record.task
    assert record.response.status == "completed"


async def test_what_runs_in_the_background_ends_with_the_server(app, engine):
    engine.gap_s = 30
    serving = app.state.server.responses
    told = await serving.create(ResponsesRequest(input="hi", background=True), None)
    (record,) = serving.store.records.values()
    await asyncio.sleep(0)
    await serving.close()
    assert record.response.status == "cancelled"
    assert not engine.running
    assert told.status == "queued", "what is told is what was then"


@pytest.mark.parametrize("query", ["stream=maybe", "starting_after=x"])
async def test_a_wrong_query_is_named(client, query):
    response = await client.get(f"/v1/responses/resp_x?{query}")
    assert response.status_code == 400
    assert response.json()["error"]["param"] == query.split("=")[0]


async def test_a_name_that_is_taken_is_not_overwritten(client):
    assert (await post(client, request_id="resp_mine"))["id"] == "resp_mine"
    response = await client.post("/v1/responses", json={"input": "x", "request_id": "resp_mine"})
    assert response.json()["error"]["param"] == "request_id"


async def test_reasoning_that_another_server_encrypted_is_left_out(client, engine):
    item = {"type": "reasoning", "summary": [], "encrypted_content": "gAAA"}
    text = [{"type": "summary_text", "text": "hm"}]
    conversation = Conversation()
    for reasoning in (item, {**item, "summary": text}):
        conversation.add(reasoning, "input")
    assert conversation.reasoning == "hm"
    response = await post(
        client,
        [{"role": "user", "content": "hi"}, item, {"role": "assistant", "content": "yes"}],
        include=["reasoning.encrypted_content"],
        store=False,
    )
    assert response["output"][0]["content"][0]["text"] == TEXT
    assert engine.seen[-1][0]["prompt"] == "<user>hi<assistant>yes<assistant>"


async def test_what_one_key_made_is_not_there_for_another(make_app, engine):
    transport = httpx.ASGITransport(app=make_app(api_key=("one", "two")))
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
        mine, theirs = ({"authorization": f"Bearer {key}"} for key in ("one", "two"))
        made = {"input": [{"role": "user", "content": "secret", "id": "msg_x"}], "background": True}
        first = (await client.post("/v1/responses", json=made, headers=mine)).json()
        path = f"/v1/responses/{first['id']}"
        seen = len(engine.seen)
        for method, suffix in (
            ("GET", ""),
            ("GET", "?stream=true"),
            ("GET", "/input_items"),
            ("POST", "/cancel"),
            ("DELETE", ""),
        ):
            reply = await client.request(method, path + suffix, headers=theirs)
            assert reply.status_code == 404, (method, suffix)
        for body in (
            {"input": "x", "previous_response_id": first["id"]},
            {"input": [{"type": "item_reference", "id": "msg_x"}]},
        ):
            reply = await client.post("/v1/responses", json=body, headers=theirs)
            assert reply.status_code in (400, 404), reply.text
        assert len(engine.seen) == seen
        # Not even its name: it is theirs to use.
        named = {"input": "y", "request_id": first["id"]}
        while (await client.get(path, headers=mine)).json()["status"] != "completed":
            await asyncio.sleep(0.005)
        reply = await client.post("/v1/responses", json=named, headers=theirs)
        assert reply.status_code == 200, reply.text
        again = {**mine, "x-api-key": "ignored"}
        assert (await client.get(path, headers={"x-api-key": "one"})).status_code == 200
        assert (await client.delete(path, headers=again)).status_code == 200
        assert (await client.get(path, headers=theirs)).status_code == 200


async def test_what_is_not_there_is_a_404_that_says_why(client):
    for method, path in [("GET", ""), ("POST", "/cancel"), ("DELETE", ""), ("GET", "/input_items")]:
        response = await client.request(method, f"/v1/responses/resp_x{path}")
        assert response.status_code == 404
        assert "no stored response 'resp_x'" in response.json()["error"]["message"]
    response = await client.post(
        "/v1/responses", json={"input": "hi", "previous_response_id": "resp_x"}
    )
    assert response.status_code == 404
    assert response.json()["error"]["param"] == "previous_response_id"


@pytest.mark.parametrize(
    "change, param",
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": [{"role": "user", "content": 3}]}, "input[0].content"),
        ({"input": [{"role": "king", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input"),
        ({"input": [{"type": "web_search_call"}]}, "input[0].type"),
        ({"input": [{"type": ["x"]}]}, "input[0].type"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].id"),
        (
            {"input": [{"type": "function_call_output", "call_id": "x", "output": ""}]},
            "input[0].call_id",
        ),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"temperature": "hot"}, "temperature"),
        ({"tools": [{"type": "code_interpreter"}]}, "tools[0].type"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "name": "x"}}, "tool_choice.name"),
        ({"tool_choice": "some"}, "tool_choice"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.schema"),
        ({"text": {"verbosity": "loud"}}, "text.verbosity"),
        ({"reasoning": {"summary": "long"}}, "reasoning.summary"),
        ({"reasoning": {"mode": "pro"}}, "reasoning.mode"),
        ({"include": ["everything"]}, "include[0]"),
        ({"moderation": {"model": "x"}}, "moderation"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"truncation": "some"}, "truncation"),
        ({"context_management": [{"type": "clear"}]}, "context_management[0].type"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"background": True, "store": False}, "background"),
    ],
)
async def test_what_is_wrong_is_named(client, change, param):
    response = await client.post("/v1/responses", json={"input": "hi", **change})
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"].startswith(param)
