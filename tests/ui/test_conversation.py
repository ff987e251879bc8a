"""Asking, stopping, asking again."""

from __future__ import annotations

import json

import jsonschema
from playwright.sync_api import Page, expect

from tests.entrypoints.openai.real_server import RealServer
from tests.ui.chat import ChatPage


def test_an_answer_comes_with_its_figures(chat: ChatPage) -> None:
    answer = chat.ask("Tell me a story about a fox named Ada.")
    assert "Ada" in chat.text(answer)
    expect(answer.locator(".figures")).to_contain_text(" tokens · first after ")
    assert chat.bodies[0]["stream"] is True
    assert chat.bodies[0]["model"] == "story"


def test_the_whole_conversation_is_sent(chat: ChatPage) -> None:
    first = chat.text(chat.ask("What is 12 + 7?"))
    chat.ask("Name three animals.")
    assert [(m["role"], m["content"]) for m in chat.bodies[1]["messages"]] == [
        ("user", "What is 12 + 7?"),
        ("assistant", first),
        ("user", "Name three animals."),
    ]


def test_escape_stops_the_answer_and_frees_the_engine(chat: ChatPage, server: RealServer) -> None:
    chat.change_request(ignore_eos=True)
    chat.page.fill("#prompt", "Tell me a story.")
    chat.page.press("#prompt", "Enter")
    expect(chat.answer.locator(".text")).not_to_be_empty()
    chat.page.keyboard.press("Escape")
    expect(chat.finished().locator(".figures")).to_contain_text("stopped")
    server.wait_for_metric("vllm:num_requests_running", 0.0)


def test_the_send_button_stops_while_there_is_something_to_stop(chat: ChatPage) -> None:
    chat.change_request(ignore_eos=True)
    chat.page.fill("#prompt", "Tell me a story.")
    chat.page.get_by_role("button", name="Send", exact=True).click()
    chat.page.get_by_role("button", name="Stop", exact=True).click()
    expect(chat.finished().locator(".figures")).to_contain_text("stopped")
    expect(chat.page.get_by_role("button", name="Send", exact=True)).to_be_visible()


def test_generating_again_replaces_the_answer(chat: ChatPage) -> None:
    chat.ask("Name three animals.")
    chat.page.get_by_role("button", name="Generate again").click()
    chat.finished()
    expect(chat.page.locator(".turn")).to_have_count(2)
    assert chat.bodies[0]["messages"] == chat.bodies[1]["messages"]


def test_the_last_message_can_be_edited_and_sent_again(chat: ChatPage) -> None:
    chat.ask("What is 1 + 1?")
    chat.ask("What is 2 + 2?")
    chat.page.press("#prompt", "ArrowUp")
    expect(chat.page.locator("#prompt")).to_have_value("What is 2 + 2?")
    chat.ask("What is 3 + 3?")
    expect(chat.page.locator(".user .body")).to_have_text(["What is 1 + 1?", "What is 3 + 3?"])
    assert [m["content"] for m in chat.bodies[2]["messages"]][-1] == "What is 3 + 3?"
    assert len(chat.bodies[2]["messages"]) == 3


def test_escape_gives_up_an_edit(chat: ChatPage) -> None:
    chat.ask("What is 1 + 1?")
    chat.page.press("#prompt", "ArrowUp")
    chat.page.press("#prompt", "Escape")
    expect(chat.page.locator("#prompt")).to_have_value("")
    chat.ask("What is 3 + 3?")
    expect(chat.page.locator(".user")).to_have_count(2)


def test_a_conversation_outlives_a_reload_and_can_be_cleared(chat: ChatPage) -> None:
    text = chat.text(chat.ask("Name three animals."))
    chat.open()
    assert chat.text(chat.answer) == text
    chat.page.get_by_role("button", name="Clear the conversation").click()
    chat.open()
    expect(chat.page.locator(".turn")).to_have_count(0)


def test_settings_reach_the_request(chat: ChatPage) -> None:
    chat.set("System prompt", "You are a pirate.")
    numbers = {"Temperature": "0.3", "Top p": "0.5", "Top k": "7", "Min p": "0.01"}
    numbers |= {"Presence penalty": "0.1", "Frequency penalty": "0.2", "Repetition penalty": "1.1"}
    for name, value in {**numbers, "Max tokens": "9", "Seed": "4"}.items():
        chat.set(name, value)
    chat.set("Stop texts, one per line", "END\n###")
    answer = chat.ask("Who are you?")
    expect(answer.locator(".figures")).to_contain_text("9 tokens")
    body = chat.bodies[0]
    assert body["messages"][0] == {"role": "system", "content": "You are a pirate."}
    wanted = {"temperature": 0.3, "top_p": 0.5, "top_k": 7, "min_p": 0.01, "max_tokens": 9}
    wanted |= {"presence_penalty": 0.1, "frequency_penalty": 0.2, "repetition_penalty": 1.1}
    assert wanted | {"seed": 4, "stop": ["END", "###"]} == {
        name: body[name] for name in (*wanted, "seed", "stop")
    }


def test_untouched_settings_are_left_to_the_server(chat: ChatPage) -> None:
    chat.page.click("#tab-settings")
    temperature = chat.page.get_by_label("Temperature", exact=True)
    expect(temperature).to_have_attribute("placeholder", "0.7")  # the model's own
    temperature.fill("1.5")
    chat.page.get_by_role("button", name="Back to defaults").click()
    chat.ask("Name three animals.")
    assert chat.bodies[0].keys() == {"messages", "model", "stream", "stream_options"}


def test_a_number_out_of_range_is_not_sent(chat: ChatPage) -> None:
    chat.set("Temperature", "9")
    chat.page.fill("#prompt", "Hello")
    chat.page.press("#prompt", "Enter")
    expect(chat.page.locator("#note")).to_contain_text("temperature")
    assert chat.bodies == []
    expect(chat.page.locator("#prompt")).to_have_value("Hello")


def test_an_answer_by_a_schema_is_shown_as_the_json_it_is(chat: ChatPage) -> None:
    chat.choose_schema()
    schema = json.loads(chat.page.get_by_label("Schema", exact=True).input_value())
    chat.set("Temperature", "0")
    answer = chat.ask("Ada is a fox. She is 7 years old. Answer in JSON: name and age.")
    value = json.loads(answer.locator("pre code").inner_text())
    jsonschema.validate(value, schema)
    assert chat.bodies[0]["response_format"]["json_schema"]["schema"] == schema


def test_a_schema_that_is_not_json_is_not_sent(chat: ChatPage) -> None:
    chat.choose_schema('{"type": ')
    chat.page.fill("#prompt", "Hello")
    chat.page.press("#prompt", "Enter")
    expect(chat.page.locator("#note")).to_contain_text("Not a JSON schema")
    assert chat.bodies == []


def test_a_schema_that_the_server_refuses_is_explained(chat: ChatPage) -> None:
    chat.choose_schema('{"type": "no such type"}')
    answer = chat.ask("Hello")
    expect(answer.get_by_role("alert")).to_contain_text("The server cannot do this")


def test_a_text_is_continued(chat: ChatPage) -> None:
    chat.page.get_by_role("radio", name="Complete").click()
    answer = chat.ask("Once upon a time")
    assert chat.text(answer).startswith("Once upon a time")
    assert chat.bodies[0]["prompt"] == "Once upon a time"
    assert "messages" not in chat.bodies[0]


def test_a_model_without_a_chat_template_continues_texts(page: Page, server: RealServer) -> None:
    def without_template(route):  # type: ignore[no-untyped-def]
        answer = route.fetch().json()
        answer["facts"]["has_chat_template"] = False
        route.fulfill(json=answer)

    page.route("**/ui/live*", without_template)
    chat = ChatPage(page, server.url)
    chat.open()
    expect(page.get_by_role("radio", name="Chat")).to_be_disabled()
    chat.ask("One evening")
    assert chat.bodies[0]["prompt"] == "One evening"


def test_any_served_name_can_be_picked(chat: ChatPage) -> None:
    chat.page.get_by_label("Model", exact=True).select_option("alias")
    chat.ask("Name three animals.")
    assert chat.bodies[0]["model"] == "alias"
