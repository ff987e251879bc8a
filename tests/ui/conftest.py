"""The page in a browser, on one real server.

Without a browser these tests are skipped; with VLLM_TEST_BROWSER=require they fail.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

from tests.entrypoints.openai.real_server import RealServer, serving
from tests.limits import HANG_S
from tests.ui.chat import ChatPage

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --headless"
).split()
# What the browser itself says of an answer that is not 2xx: tests that provoke one expect it.
EXPECTED_ERROR = "Failed to load resource"
# Waits end as soon as what is waited for is there; a busy machine may take its time.
expect.set_options(timeout=HANG_S * 1000)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    log = tmp_path_factory.mktemp("server") / "log.txt"
    # Few blocks, so that the bar of the KV cache has something to show.
    env = {"VLLM_CPU_KVCACHE_SPACE": "0.02"}
    with serving("--served-model-name", "story", "alias", log=log, env=env) as server:
        yield server


# Of the package, since an open browser keeps an event loop running, and async tests start theirs.
@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        reason = f"no browser: none of {', '.join(BROWSERS)} is installed"
        if os.environ.get("VLLM_TEST_BROWSER") == "require":
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A fresh tab of a desktop; the test fails if the page logs an error."""
    context = browser.new_context(viewport={"width": 1280, "height": 820}, color_scheme="light")
    problems: list[str] = []

    def note(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and EXPECTED_ERROR not in message.text:
            problems.append(message.text)

    page = context.new_page()
    page.set_default_timeout(HANG_S * 1000)
    page.on("console", note)
    page.on("pageerror", lambda error: problems.append(str(error)))
    yield page
    context.close()
    assert problems == []


@pytest.fixture
def chat(page: Page, server: RealServer) -> ChatPage:
    """The page, open and ready."""
    chat = ChatPage(page, server.url)
    chat.open()
    return chat
