"""How answers are shown: as Markdown, as tokens, as reasoning, and never as markup."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from tests.ui.chat import ChatPage

MARKDOWN = """# A title

Some **bold**, some *slanted*, some `code` and [a link](https://example.org/x).
A second line.

- one
- two
  1. inner
  2. other
- three

> quoted

```python
def f(x):

    return x ** 2
```

7. seven
8. eight

The end, 2 * 3 * 4 and snake_case_name.
"""


def draw_every_piece(chat: ChatPage) -> None:
    """As if a frame came after each."""
    chat.page.evaluate("() => { window.requestAnimationFrame = (draw) => (draw(), 0); }")


def test_markup_in_an_answer_is_text(chat: ChatPage) -> None:
    attack = (
        "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script> "
        "**<b>x</b>** `<i>y</i>` [z](javascript:alert(1))\n\n```\n<iframe src=//x>\n```\n"
    )
    chat.answer_with([attack])
    answer = chat.ask('<img src=x onerror="document.title=1"> and <svg onload=alert(1)>')
    expect(answer.locator(".text")).to_contain_text("<img src=x onerror=")
    expect(answer.locator("pre")).to_have_text("<iframe src=//x>")
    expect(chat.page.locator(".user .body")).to_contain_text("<svg onload=alert(1)>")
    expect(chat.page.locator("#log :is(img, script, iframe, b:not(.key b), i, a)")).to_have_count(0)
    assert "owned" not in chat.page.title()


def test_markup_in_tokens_is_text(chat: ChatPage) -> None:
    chat.page.click("#token-view")
    chat.page.get_by_role("radio", name="Complete").click()
    answer = chat.ask("<b>Once</b> upon <img src=x onerror=alert(1)> a time")
    expect(answer.locator("img")).to_have_count(0)
    expect(answer.locator(".token").first).to_be_visible()


def test_markdown_becomes_blocks(chat: ChatPage) -> None:
    chat.answer_with([MARKDOWN])
    text = chat.ask("Show me").locator(".text")
    expect(text.locator("h3")).to_have_text("A title")
    expect(text.locator("strong")).to_have_text("bold")
    expect(text.locator("em")).to_have_text("slanted")
    expect(text.locator("p code")).to_have_text("code")
    expect(text.locator("a")).to_have_attribute("href", "https://example.org/x")
    expect(text.locator("> ul > li")).to_have_count(3)
    expect(text.locator("ul ol li")).to_have_text(["inner", "other"])
    expect(text.locator("blockquote")).to_have_text("quoted")
    expect(text.locator("pre code")).to_have_text("def f(x):\n\n    return x ** 2")
    expect(text.locator("> ol")).to_have_attribute("start", "7")
    expect(text.locator("> p").last).to_contain_text("2 * 3 * 4 and snake_case_name")


@pytest.mark.parametrize("size", [1, 7, 40])
def test_a_stream_ends_as_the_same_blocks_however_it_is_cut(chat: ChatPage, size: int) -> None:
    pieces = [MARKDOWN[i : i + size] for i in range(0, len(MARKDOWN), size)]
    draw_every_piece(chat)
    chat.answer_with([MARKDOWN])
    whole = chat.ask("At once").locator(".text").inner_html()
    chat.answer_with(pieces)
    assert chat.ask("In pieces").locator(".text").inner_html() == whole


def test_what_is_settled_is_not_made_again(chat: ChatPage) -> None:
    draw_every_piece(chat)
    chat.page.evaluate(
        """() => {
            window.removed = [];
            new MutationObserver((changes) => {
                for (const change of changes) window.removed.push(...change.removedNodes);
            }).observe(document.getElementById("log"), { subtree: true, childList: true });
        }"""
    )
    chat.answer_with([piece for i in range(100) for piece in (f"Paragraph {i} ", "ends.\n\n")])
    chat.ask("Much")
    removed = chat.page.evaluate("window.removed.filter((n) => n.tagName === 'P').length")
    assert removed <= 100  # each once, when it is settled
    expect(chat.answer.locator(".text > p")).to_have_count(100)


def test_reasoning_is_shown_apart_and_folded(chat: ChatPage) -> None:
    chat.answer_with(["The answer is 19."], reasoning=["First ", "I add <b>."])
    answer = chat.ask("What is 12 + 7?")
    details = answer.locator("details.reasoning")
    expect(details).not_to_have_attribute("open", "")
    details.locator("summary").click()
    expect(details).to_contain_text("First I add <b>.")
    expect(answer.locator(".text")).to_have_text("The answer is 19.")


def test_a_token_shows_what_else_could_have_come(chat: ChatPage) -> None:
    chat.page.click("#token-view")
    answer = chat.ask("Tell me a story about a fox named Ada.")
    assert chat.bodies[0]["logprobs"] is True
    token = answer.locator(".token").nth(3)
    token.hover()
    box = chat.page.locator("#alternatives")
    expect(box).to_be_visible()
    expect(box.locator("> div")).to_have_count(5)
    expect(box.locator(".chosen")).to_have_count(1)
    expect(box.locator("b").first).to_contain_text("%")
    chat.page.mouse.move(5, 5)
    expect(box).to_be_hidden()


def test_tokens_are_reached_with_the_keyboard(chat: ChatPage) -> None:
    chat.page.click("#token-view")
    answer = chat.ask("Name three animals.")
    answer.locator(".token").first.focus()
    chat.page.keyboard.press("ArrowRight")
    expect(answer.locator(".token").nth(1)).to_be_focused()
    expect(chat.page.locator("#alternatives")).to_be_visible()
    chat.page.keyboard.press("Escape")
    expect(chat.page.locator("#alternatives")).to_be_hidden()


def test_tokens_and_text_are_two_views_of_an_answer(chat: ChatPage) -> None:
    chat.page.click("#token-view")
    answer = chat.ask("Name three animals.")
    tokens = "".join(answer.locator(".token").all_text_contents())
    answer.get_by_role("button", name="Tokens").click()
    expect(answer.locator(".tokens")).to_be_hidden()
    assert tokens.startswith(chat.text(answer))


def test_tokens_of_a_continued_text_are_shown_as_well(chat: ChatPage) -> None:
    chat.page.click("#token-view")
    chat.page.get_by_role("radio", name="Complete").click()
    chat.set("Max tokens", "8")
    answer = chat.ask("Once upon a time")
    assert chat.bodies[0]["logprobs"] == 5
    expect(answer.locator(".token")).to_have_count(8)


def test_scrolling_follows_unless_one_has_scrolled_away(chat: ChatPage) -> None:
    scroller = chat.page.locator("#scroller")
    chat.answer_with([f"Line {i}.\n\n" for i in range(80)])
    chat.ask("Much")
    at_end = "n => n.scrollHeight - n.scrollTop - n.clientHeight < 50"
    assert scroller.evaluate(at_end)
    scroller.evaluate("n => n.scrollTop = 0")
    expect(chat.page.get_by_role("button", name="Latest")).to_be_visible()
    chat.page.get_by_role("button", name="Latest").click()
    assert scroller.evaluate(at_end)
