"""Sizes, themes, and a keyboard alone."""

from __future__ import annotations

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.entrypoints.openai.real_server import RealServer
from tests.ui.chat import ChatPage


@pytest.mark.parametrize("width", [360, 899, 900])
def test_no_view_is_wider_than_the_window(chat: ChatPage, width: int) -> None:
    chat.page.set_viewport_size({"width": width, "height": 740})
    if width < 900:
        chat.page.click("#tab-chat")
    chat.page.click("#token-view")
    chat.answer_with(["x" * 300 + "\n\n```\n" + "y" * 300 + "\n```\n"])
    chat.ask("A long word: " + "w" * 200)
    chat.choose_schema()
    for tab in chat.page.get_by_role("tab").all():
        if tab.is_visible():
            tab.click()
            assert chat.overflow_px() <= 0, tab.inner_text()


def test_a_phone_shows_one_view_at_a_time(chat: ChatPage) -> None:
    chat.page.set_viewport_size({"width": 360, "height": 740})
    for view in ("chat", "engine", "settings"):
        chat.page.click(f"#tab-{view}")
        shown = [v for v in ("chat", "engine", "settings") if chat.page.is_visible(f"#{v}")]
        assert shown == [view]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_theme_is_the_one_of_the_system_until_one_is_chosen(
    browser: Browser, server: RealServer, scheme: str
) -> None:
    context = browser.new_context(color_scheme=scheme)  # type: ignore[arg-type]
    page = context.new_page()
    page.goto(server.url)
    assert is_dark(page) == (scheme == "dark")
    page.click("#theme")
    assert is_dark(page) != (scheme == "dark")
    page.reload()
    assert is_dark(page) != (scheme == "dark")
    context.close()


def is_dark(page: Page) -> bool:
    """By what is drawn: the lightness of the ground."""
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    return float(colour.removeprefix("oklch(").split()[0]) < 0.5


def test_a_conversation_needs_no_pointer(page: Page, server: RealServer) -> None:
    chat = ChatPage(page, server.url)
    chat.open()
    keys = page.keyboard
    expect(page.locator("#prompt")).to_be_focused()
    keys.type("What is 1 + 1?")
    keys.press("Shift+Enter")
    keys.type("Say it.")
    keys.press("Enter")
    chat.finished()
    assert chat.bodies[0]["messages"][0]["content"] == "What is 1 + 1?\nSay it."
    keys.press("Tab")  # the mode
    expect(page.get_by_role("radio", name="Chat")).to_be_focused()
    keys.press("ArrowRight")
    expect(page.get_by_role("radio", name="Complete")).to_have_attribute("aria-checked", "true")
    keys.press("Tab")
    keys.press("Space")
    expect(page.locator("#token-view")).to_have_attribute("aria-pressed", "true")
    page.focus("#tab-engine")
    keys.press("ArrowRight")
    expect(page.get_by_label("System prompt")).to_be_visible()


def test_everything_that_can_be_pressed_has_a_name(chat: ChatPage) -> None:
    chat.ask("Name three animals.")
    unnamed = chat.page.evaluate(
        """[...document.querySelectorAll("button, input, textarea, select")]
            .filter((n) => !(n.innerText || n.ariaLabel || n.labels?.length)).map((n) => n.id)"""
    )
    assert unnamed == []


def test_the_conversation_is_a_log_that_is_busy_while_it_grows(chat: ChatPage) -> None:
    log = chat.page.get_by_role("log")
    chat.change_request(ignore_eos=True)
    chat.page.fill("#prompt", "Tell me a story.")
    chat.page.press("#prompt", "Enter")
    expect(log).to_have_attribute("aria-busy", "true")
    chat.page.keyboard.press("Escape")
    expect(log).to_have_attribute("aria-busy", "false")


def test_what_is_above_an_answer_does_not_move_when_it_ends(chat: ChatPage) -> None:
    chat.page.evaluate(
        """() => {
            window.shifts = 0;
            new PerformanceObserver((list) => {
                for (const entry of list.getEntries()) window.shifts += entry.value;
            }).observe({ type: "layout-shift", buffered: false });
        }"""
    )
    chat.ask("Tell me a story about a fox named Ada.")
    chat.page.wait_for_timeout(100)
    assert chat.page.evaluate("window.shifts") < 0.02
