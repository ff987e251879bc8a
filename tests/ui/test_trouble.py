"""The page while something is wrong: refusals, overload, a dead engine, a missing key."""

from __future__ import annotations

from playwright.sync_api import Page, Route, expect

from tests.entrypoints.openai.real_server import RealServer
from tests.ui.chat import CHAT_PATH, ChatPage


def test_a_refusal_is_shown_in_the_words_of_the_server(chat: ChatPage) -> None:
    chat.change_request(temperature=-3)
    answer = chat.ask("Hello")
    expect(answer.get_by_role("alert")).to_contain_text("The server cannot do this: temperature")
    expect(answer.get_by_role("alert")).to_contain_text("-3")


def test_after_a_refusal_one_can_try_again(chat: ChatPage) -> None:
    chat.fail_with(400, "no")
    chat.ask("Name three animals.")
    chat.page.unroute(CHAT_PATH)
    chat.page.get_by_role("button", name="Try again").click()
    expect(chat.finished().locator(".figures")).to_contain_text("tokens")
    expect(chat.page.locator(".error")).to_have_count(0)


def test_a_question_without_an_answer_is_not_repeated(chat: ChatPage) -> None:
    chat.fail_with(400, "no")
    chat.ask("Hello")
    chat.page.unroute(CHAT_PATH)
    chat.ask("Name three animals.")
    assert [m["content"] for m in chat.bodies[1]["messages"]] == ["Name three animals."]


def test_overload_says_when_to_try_again(chat: ChatPage) -> None:
    chat.fail_with(503, "the queue is full", retry_after="2")
    answer = chat.ask("Hello")
    expect(answer).to_contain_text("The server is busy")
    expect(answer.get_by_role("button", name="Try again in 2 s")).to_be_disabled()
    expect(answer.get_by_role("button", name="Try again", exact=True)).to_be_enabled()


def test_a_dead_engine_is_named(chat: ChatPage) -> None:
    chat.fail_with(503, "the engine core is gone", "EngineDeadError")
    expect(chat.ask("Hello")).to_contain_text("The engine has stopped")


def test_an_answer_that_breaks_off_keeps_what_came(chat: ChatPage) -> None:
    body = 'data: {"choices": [{"index": 0, "delta": {"content": "Half of"}}]}\n\n'
    chat.page.route(
        CHAT_PATH, lambda route: route.fulfill(body=body, content_type="text/event-stream")
    )
    answer = chat.ask("Hello")
    expect(answer.locator(".text")).to_have_text("Half of")
    expect(answer.get_by_role("alert")).to_contain_text("broke off")


def test_an_error_in_the_middle_of_a_stream_is_shown(chat: ChatPage) -> None:
    body = 'data: {"error": {"message": "it went wrong", "type": "GenerationError", "code": 500}}'
    chat.page.route(
        CHAT_PATH,
        lambda route: route.fulfill(body=f"{body}\n\n", content_type="text/event-stream"),
    )
    expect(chat.ask("Hello").get_by_role("alert")).to_contain_text("it went wrong")


def test_a_server_that_is_gone_is_noticed_and_found_again(chat: ChatPage) -> None:
    chat.page.route("**/ui/live*", lambda route: route.abort())
    chat.page.route(CHAT_PATH, lambda route: route.abort())
    expect(chat.page.locator("#status")).to_have_text("No connection")
    expect(chat.ask("Hello")).to_contain_text("No connection")
    chat.page.unroute("**/ui/live*")
    expect(chat.page.locator("#status")).to_have_text("Ready")


def test_a_key_is_asked_for_kept_in_the_tab_and_sent(page: Page, server: RealServer) -> None:
    def guard(route: Route) -> None:
        if route.request.headers.get("authorization") == "Bearer secret":
            route.continue_()
        else:
            error = {"message": "a valid key is required", "type": "AuthenticationError"}
            route.fulfill(status=401, json={"error": error})

    page.route("**/v1/**", guard)
    page.goto(server.url)
    page.get_by_label("API key").fill("wrong")
    page.get_by_role("button", name="Use key").click()
    page.get_by_label("API key").fill("secret")
    page.get_by_label("API key").press("Enter")
    chat = ChatPage(page, server.url)
    expect(page.locator("#model")).not_to_be_empty()
    expect(chat.ask("Name three animals.").locator(".figures")).to_contain_text("tokens")
    assert page.evaluate("Object.values(sessionStorage).includes('\"secret\"')")
    assert not page.evaluate("Object.values(localStorage).includes('\"secret\"')")


def test_without_a_key_the_engine_is_still_shown(page: Page, server: RealServer) -> None:
    page.route("**/v1/**", lambda route: route.fulfill(status=401, json={"error": {"message": ""}}))
    page.goto(server.url)
    page.get_by_role("button", name="Not now").click()
    expect(page.locator("#facts")).to_contain_text("1,024 tokens")
    page.wait_for_timeout(1500)  # a poll or two
    expect(page.locator("#key-dialog")).to_be_hidden()
    page.fill("#prompt", "Hello")
    page.press("#prompt", "Enter")
    expect(page.locator(".answer").get_by_role("button", name="Enter a key")).to_be_attached()
