"""/v1/responses and /v1/messages by the clients they were made for, on a real engine."""

import json

import anthropic
import openai
import pytest

from tests.entrypoints.openai.real_server import NAME

pytestmark = pytest.mark.engine
QUESTION = "Tell me a short story."
GREEDY = {"model": NAME, "input": QUESTION, "temperature": 0, "max_output_tokens": 16}
ASKED = {
    "model": NAME,
    "messages": [{"role": "user", "content": QUESTION}],
    "extra_body": {"temperature": 0},  # this client no longer has it by name
    "max_tokens": 16,
}
TOOL = {
    "type": "function",
    "name": "paint",
    "parameters": {
        "type": "object",
        "properties": {"color": {"enum": ["red", "blue"]}},
        "required": ["color"],
        "additionalProperties": False,
    },
}


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def claude(server):
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client:
        yield client


def test_a_streamed_response_is_the_whole_one(client):
    whole = client.responses.create(**GREEDY)
    assert (whole.status, whole.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert len(whole.output_text) > 20
    assert whole.usage.output_tokens == 16
    text, last = "", None
    with client.responses.stream(**GREEDY) as stream:
        for event in stream:
            if event.type == "response.output_text.delta":
                text += event.delta
            last = event
    assert last.type == "response.incomplete"
    assert text == last.response.output_text == whole.output_text


def test_a_response_is_the_chat_with_the_same_words(client):
    chat = client.chat.completions.create(
        model=NAME, messages=ASKED["messages"], temperature=0, max_tokens=16
    )
    assert client.responses.create(**GREEDY).output_text == chat.choices[0].message.content


def test_a_conversation_goes_on_and_is_forgotten_when_deleted(client):
    first = client.responses.create(**GREEDY)
    again = {**GREEDY, "input": "More, please."}
    second = client.responses.create(**again, previous_response_id=first.id)
    assert second.usage.input_tokens > first.usage.input_tokens + 16
    assert client.responses.retrieve(first.id).output_text == first.output_text
    items = client.responses.input_items.list(first.id)
    assert items.data[0].content[0].text == QUESTION
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError, match="no stored response"):
        client.responses.create(**again, previous_response_id=first.id)


def test_a_background_response_is_cancelled_and_the_engine_hears_of_it(client, server):
    long = {**GREEDY, "max_output_tokens": 1500, "extra_body": {"ignore_eos": True}}
    queued = client.responses.create(**long, background=True)
    assert queued.status == "queued"
    assert client.responses.cancel(queued.id).status == "cancelled"
    assert client.responses.retrieve(queued.id).status == "cancelled"
    server.wait_for_metric("vllm:num_requests_running", 0)


def test_a_background_stream_is_replayed(client):
    events = list(client.responses.create(**GREEDY, background=True, stream=True))
    replayed = client.responses.retrieve(
        events[0].response.id, stream=True, starting_after=events[5].sequence_number
    )
    assert list(replayed) == events[6:]


def test_a_response_follows_a_schema_and_calls_a_function_it_must_call(client):
    schema = {"type": "json_schema", "name": "color", "schema": TOOL["parameters"]}
    asked = {**GREEDY, "max_output_tokens": 64}
    answer = client.responses.create(**asked, text={"format": schema})
    assert json.loads(answer.output_text)["color"] in ("red", "blue")
    called = client.responses.create(**asked, tools=[TOOL], tool_choice="required")
    (call,) = called.output[:1]
    assert (call.type, call.name) == ("function_call", "paint")
    assert json.loads(call.arguments)["color"] in ("red", "blue")


def test_a_streamed_message_is_the_whole_one(claude):
    whole = claude.messages.create(**ASKED)
    assert whole.stop_reason == "max_tokens"
    assert len(whole.content[0].text) > 20
    with claude.messages.stream(**ASKED) as stream:
        assert "".join(stream.text_stream) == whole.content[0].text
        assert stream.get_final_message().stop_reason == "max_tokens"


def test_a_stop_sequence_ends_a_message_and_is_named(claude):
    text = claude.messages.create(**ASKED).content[0].text
    stop = text[10:14]
    message = claude.messages.create(**ASKED, stop_sequences=[stop])
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", stop)
    assert message.content[0].text == text[: text.index(stop)]


def test_counted_tokens_are_those_of_the_message(claude):
    counted = claude.messages.count_tokens(model=NAME, messages=ASKED["messages"], system="Hi.")
    usage = claude.messages.create(**ASKED, system="Hi.").usage
    assert counted.input_tokens == usage.input_tokens + usage.cache_read_input_tokens


ONE_OF_ANY = {"type": "any", "disable_parallel_tool_use": True}


@pytest.mark.parametrize("choice", [ONE_OF_ANY, {"type": "tool", "name": "paint"}])
def test_a_tool_that_must_be_used_is_used(claude, choice):
    tool = {"name": "paint", "input_schema": TOOL["parameters"]}
    asked = {**ASKED, "max_tokens": 128, "tools": [tool], "tool_choice": choice}
    with claude.messages.stream(**asked) as stream:
        streamed = stream.get_final_message()
    for message in (claude.messages.create(**asked), streamed):
        assert message.stop_reason == "tool_use"
        assert message.content[0].name == "paint"
        assert message.content[0].input["color"] in ("red", "blue")


def test_errors_are_those_the_client_knows(claude):
    with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
        claude.messages.create(**{**ASKED, "max_tokens": 0})
    with pytest.raises(anthropic.NotFoundError, match="not served here"):
        claude.messages.create(**{**ASKED, "model": "other"})
