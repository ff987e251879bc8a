import asyncio
import threading

import httpx
import pytest

from tests.entrypoints.openai.sse import stream
from tests.limits import HANG_S

PATH = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "Hi"}]
pytestmark = pytest.mark.asyncio


async def post(client, **body):
    response = await client.post(PATH, json={"messages": HELLO, **body})
    assert response.status_code == 200, response.text
    return response.json()


async def test_answer_is_an_assistant_message(client, engine):
    answer = await post(client, max_tokens=3)
    assert answer["object"] == "chat.completion"
    assert answer["choices"][0]["message"]["role"] == "assistant"
    assert answer["choices"][0]["message"]["content"] == "and"
    assert answer["choices"][0]["finish_reason"] == "length"
    prompt = "<user>Hi<assistant>"
    assert engine.seen[0][0]["prompt"] == prompt
    assert answer["usage"]["prompt_tokens"] == len(prompt)


async def test_streamed_content_is_the_content_of_the_whole_answer(client):
    whole = await post(client, n=2)
    pieces = await stream(client, PATH, {"messages": HELLO, "n": 2})
    for i in range(2):
        choices = [piece["choices"][0] for piece in pieces if piece["choices"][0]["index"] == i]
        assert choices[0]["delta"] == {"role": "assistant", "content": ""}
        text = "".join(choice["delta"].get("content", "") for choice in choices)
        assert text == whole["choices"][i]["message"]["content"]
        assert [c["finish_reason"] for c in choices if c["finish_reason"]] == ["stop"]
    assert {piece["object"] for piece in pieces} == {"chat.completion.chunk"}


async def test_what_has_no_value_is_null_and_not_absent(client):
    """Clients read these as attributes of what came."""
    answer = await post(client, max_tokens=3)
    nulls = "prompt_logprobs prompt_token_ids kv_transfer_params service_tier system_fingerprint"
    assert {name: answer[name] for name in nulls.split()} == dict.fromkeys(nulls.split())
    (choice,) = answer["choices"]
    nulls = "reasoning_content reasoning refusal annotations audio function_call"
    assert {name: choice["message"][name] for name in nulls.split()} == dict.fromkeys(nulls.split())
    assert choice["message"]["tool_calls"] == []
    assert (choice["stop_reason"], choice["token_ids"]) == (None, None)


async def test_every_chunk_tells_the_usage_of_its_sequence_if_asked(client):
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = {"messages": HELLO, "n": 2, "max_tokens": 2, "stream_options": options}
    *pieces, last = await stream(client, PATH, body)
    for index in range(2):
        own = [piece["usage"] for piece in pieces if piece["choices"][0]["index"] == index]
        # The first says the role, before there is a token.
        assert [usage["completion_tokens"] for usage in own] == [0, 1, 2]
        assert {usage["prompt_tokens"] for usage in own} == {len("<user>Hi<assistant>")}
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 4


async def test_max_completion_tokens_wins_over_max_tokens(client, engine):
    await post(client, max_tokens=9, max_completion_tokens=2)
    await post(client)
    assert [params.max_tokens for _, params, _ in engine.seen] == [2, None]


async def test_logprobs_list_alternatives_best_first_with_their_bytes(client):
    answer = await post(client, max_tokens=1, logprobs=True, top_logprobs=2)
    (token,) = answer["choices"][0]["logprobs"]["content"]
    assert (token["token"], token["logprob"], token["bytes"]) == ("a", -0.5, [97])
    assert [top["token"] for top in token["top_logprobs"]] == ["a", "b"]
    assert token["top_logprobs"][1]["logprob"] == -9999.0
    assert (await post(client, max_tokens=1))["choices"][0]["logprobs"] is None


async def test_final_message_can_be_continued(client, engine):
    messages = [*HELLO, {"role": "assistant", "content": "Well"}]
    answer = await post(
        client,
        messages=messages,
        add_generation_prompt=False,
        continue_final_message=True,
        echo=True,
        max_tokens=3,
    )
    assert engine.seen[0][0]["prompt"] == "<user>Hi<assistant>Well"
    assert answer["choices"][0]["message"]["content"] == "Welland"


async def test_an_early_chat_waits_for_its_renderer_and_others_do_not(make_app, monkeypatch):
    imported, is_over = threading.Event(), threading.Event()

    def import_renderer() -> None:
        imported.set()
        assert is_over.wait(HANG_S)

    monkeypatch.setattr("vllm.entrypoints.openai.serving.context.import_renderer", import_renderer)
    app = make_app()
    transport = httpx.ASGITransport(app=app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://server") as client,
    ):
        early = asyncio.create_task(post(client, max_tokens=1))
        other = await client.post("/v1/completions", json={"prompt": "Hi", "max_tokens": 1})
        assert other.status_code == 200
        assert imported.wait(HANG_S)
        assert not early.done()
        is_over.set()
        assert (await early)["choices"][0]["message"]["content"] == "a"
        assert (await post(client, max_tokens=1))["choices"][0]["message"]["content"] == "a"


async def test_response_role_is_the_servers_choice(make_app, engine):
    transport = httpx.ASGITransport(app=make_app(response_role="narrator"))
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
        answer = await post(client, max_tokens=1)
    assert answer["choices"][0]["message"]["role"] == "narrator"


async def test_a_template_of_the_tokenizer_may_be_named(client, engine):
    await post(client, chat_template="default")
    assert engine.seen[0][0]["prompt"] == "<user>Hi<assistant>"


async def test_tools_that_must_not_be_called_reach_the_template(client):
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    assert (await post(client, tools=[tool], tool_choice="none"))["choices"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, "guided_regex"),
        ({"guided_whitespace_pattern": " "}, "guided_whitespace_pattern"),
        ({"guided_choice": []}, "guided_choice"),
        ({"structured_outputs": {"json": 3}}, "structured_outputs"),
        ({"use_beam_search": True, "stream": True}, "use_beam_search"),
        ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"chat_template": "{{ 1 }}"}, "chat_template"),
        ({"chat_template": "tool_use"}, "chat_template"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"add_generation_prompt": True, "continue_final_message": True}, "continue_final_message"),
        ({"messages": []}, "messages"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content[0].type",
        ),
    ],
)
async def test_what_is_not_available_is_refused_by_name(client, engine, body, param):
    response = await client.post(PATH, json={"messages": HELLO, **body})
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param
    assert not engine.seen


@pytest.mark.parametrize(
    "body",
    [
        {"tool_choice": "none"},
        {"tool_choice": "none"},
        {"response_format": {"type": "text"}},
        {"parallel_tool_calls": True},
        {"use_beam_search": False},
        {"length_penalty": 1.0},
        {"user": "me"},
        {"modalities": ["text"]},
        {"no_such_field": 1},
    ],
)
async def test_fields_that_change_nothing_are_accepted(client, body):
    assert await post(client, **body)
