"""Deltas in every order to items and events of /v1/responses, and to blocks of /v1/messages."""

import itertools

import msgspec
import pytest

from vllm.entrypoints.openai.protocol.messages import MessageObject, MessageUsage
from vllm.entrypoints.openai.protocol.responses import (
    InputDetails,
    OutputDetails,
    ResponsesRequest,
    ResponseUsage,
)
from vllm.entrypoints.openai.serving.message_events import MessageStream
from vllm.entrypoints.openai.serving.response_events import ResponseStream
from vllm.entrypoints.openai.serving.responses import _response
from vllm.parsers.deltas import ContentDelta, ReasoningDelta, ToolCallDelta

USAGE = ResponseUsage(1, InputDetails(0), 1, OutputDetails(0), 2)
PARTS = {
    "reasoning": [ReasoningDelta("hm"), ReasoningDelta(", hm")],
    "message": [ContentDelta("So"), ContentDelta(""), ContentDelta(" it is")],
    "function_call": [
        ToolCallDelta(0, "call_1", "weather", ""),
        ToolCallDelta(0, None, None, '{"city":'),
        ToolCallDelta(0, None, None, '"Ulm"}'),
    ],
    "function_call ": [ToolCallDelta(1, "call_2", "time", "{}")],
}
ORDERS = [
    order for length in range(len(PARTS) + 1) for order in itertools.permutations(PARTS, length)
]


def stream():
    return ResponseStream(_response(ResponsesRequest(input="hi"), "resp_1", "m", {}))


def plain(events):
    """Each as it is when it is made."""
    return [msgspec.to_builtins(event) for event in events]


@pytest.mark.parametrize("is_cut", [False, True])
@pytest.mark.parametrize("order", ORDERS, ids=lambda order: "-".join(order) or "nothing")
def test_every_order_of_parts_makes_items_one_after_the_other(order, is_cut):
    made = stream()
    events = []
    for part in order:
        for delta in PARTS[part]:
            events += plain(made.push([delta], []))
    events += plain(made.finish(is_cut, USAGE))
    kinds = [part.strip() for part in order] or ["message"]
    assert [item["type"] for item in rebuilt(events[:-1])] == kinds
    assert rebuilt(events[:-1]) == plain(made.response.output)
    assert events[-1]["type"] == ("response.incomplete" if is_cut else "response.completed")
    assert made.response.status == ("incomplete" if is_cut else "completed")
    assert made.response.output[-1].status == made.response.status
    assert all(item.status == "completed" for item in made.response.output[:-1])


def rebuilt(events):
    """The items as a client makes them of the deltas, checked against what the events say."""
    items, texts, is_open = [], [], False
    for event in events:
        kind = event["type"].removeprefix("response.")
        if kind == "output_item.added":
            assert not is_open and event["output_index"] == len(items)
            assert event["item"]["status"] == "in_progress"
            is_open = True
            items.append(event["item"])
            texts.append("")
            continue
        assert is_open and event["output_index"] == len(items) - 1
        if kind == "output_item.done":
            is_open = False
            items[-1] = event["item"]
            continue
        assert event["item_id"] == items[-1]["id"]
        if kind.endswith(".delta"):
            texts[-1] += event["delta"]
        elif kind == "function_call_arguments.done":
            assert event["arguments"] == texts[-1]
        elif kind.endswith("_text.done"):
            assert event["text"] == texts[-1]
        elif kind == "content_part.done":
            assert event["part"]["text"] == texts[-1]
        else:
            assert kind == "content_part.added" and event["part"]["text"] == ""
    assert not is_open
    return items


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: "-".join(order) or "nothing")
def test_every_order_of_parts_makes_blocks_one_after_the_other(order):
    made = MessageStream(MessageObject("msg_1", "m", MessageUsage(1, 0, 0)))
    events = []
    for part in order:
        for delta in PARTS[part]:
            events += plain(made.push([delta]))
    events += plain(made.finish("stop", None, MessageUsage(1, 1, 0)))
    names = {"reasoning": "thinking", "message": "text", "function_call": "tool_use"}
    kinds = [names[part.strip()] for part in order] or ["text"]
    assert [block["type"] for block in plain(made.message.content)] == kinds
    starts = [event["index"] for event in events if event["type"] == "content_block_start"]
    stops = [event["index"] for event in events if event["type"] == "content_block_stop"]
    assert starts == stops == list(range(len(kinds)))
    assert made.message.stop_reason == ("tool_use" if "tool_use" in kinds else "end_turn")


def test_a_response_that_fails_or_is_cancelled_keeps_what_it_has():
    failed, cancelled = stream(), stream()
    for made in (failed, cancelled):
        list(made.push([ContentDelta("So")], []))
    last = plain(failed.fail("server_error", "gone"))[-1]
    assert last["type"] == "response.failed"
    assert last["response"]["error"] == {"code": "server_error", "message": "gone"}
    list(cancelled.cancel())
    assert cancelled.response.status == "cancelled"
    for made in (failed, cancelled):
        assert made.response.output[0].content[0].text == "So"
        assert made.response.output[0].status == "incomplete"


def test_arguments_that_were_cut_off_are_an_empty_input():
    made = MessageStream(MessageObject("msg_1", "m", MessageUsage(1, 0, 0)))
    list(made.push([ToolCallDelta(0, "t", "weather", '{"city": "U')]))
    list(made.finish("length", None, MessageUsage(1, 1, 0)))
    assert made.message.content[0].input == {}
    assert made.message.stop_reason == "max_tokens"
