"""The page as a person uses it, and answers made up for it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from playwright.sync_api import Locator, Page, Route, expect

CHAT_PATH = "**/v1/chat/completions"


class ChatPage:
    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url
        self.bodies: list[dict[str, Any]] = []  # of the requests for answers
        page.on("request", self._note)

    def _note(self, request: Any) -> None:
        if request.url.endswith("/completions"):
            self.bodies.append(request.post_data_json)

    def open(self) -> None:
        self.page.goto(self.url)
        expect(self.page.locator("#status")).to_have_text("Ready")
        expect(self.page.locator("#model")).not_to_be_empty()

    def ask(self, text: str) -> Locator:
        """Send, wait for the end, and return the answer."""
        self.page.fill("#prompt", text)
        self.page.press("#prompt", "Enter")
        return self.finished()

    def finished(self) -> Locator:
        expect(self.page.locator(".answer.streaming")).to_have_count(0)
        expect(self.answer.locator(".figures, .error").first).not_to_be_empty()
        return self.answer

    @property
    def answer(self) -> Locator:
        return self.page.locator(".answer").last

    def text(self, answer: Locator) -> str:
        return answer.locator(".text").inner_text()

    def set(self, name: str, value: str) -> None:
        """A field of the settings, found by its label."""
        self.page.click("#tab-settings")
        self.page.get_by_label(name, exact=True).fill(value)

    def choose_schema(self, schema: str | None = None) -> None:
        self.page.click("#tab-settings")
        self.page.get_by_role("radio", name="JSON schema").click()
        if schema is not None:
            self.page.get_by_label("Schema", exact=True).fill(schema)

    def overflow_px(self) -> int:
        """How much wider than the window the page is."""
        return int(self.page.evaluate("document.documentElement.scrollWidth - window.innerWidth"))

    # -- made-up answers --------------------------------------------------------------------------

    def answer_with(self, pieces: Sequence[str], reasoning: Sequence[str] = ()) -> None:
        """Answer chat requests with these pieces, one chunk each."""
        deltas = [{"reasoning_content": piece} for piece in reasoning]
        deltas += [{"content": piece} for piece in pieces]
        chunks: list[Any] = [{"choices": [{"index": 0, "delta": delta}]} for delta in deltas]
        end = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
        usage = {"choices": [], "usage": {"completion_tokens": len(deltas)}}
        events = [f"data: {json.dumps(chunk)}\n\n" for chunk in [*chunks, end, usage]]
        body = "".join(events) + "data: [DONE]\n\n"
        self.page.unroute(CHAT_PATH)
        self.page.route(
            CHAT_PATH, lambda route: route.fulfill(body=body, content_type="text/event-stream")
        )

    def fail_with(self, status: int, message: str, kind: str = "", **headers: str) -> None:
        error = {"error": {"message": message, "type": kind, "param": None, "code": status}}

        def fail(route: Route) -> None:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            route.fulfill(status=status, json=error, headers=named)

        self.page.route(CHAT_PATH, fail)

    def change_request(self, **fields: Any) -> None:
        """Add fields that the page has no control for."""

        def change(route: Route) -> None:
            body = route.request.post_data_json
            route.continue_(post_data=json.dumps({**body, **fields}))

        self.page.route("**/completions", change)
