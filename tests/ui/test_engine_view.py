"""The engine, live."""

from __future__ import annotations

import threading

import httpx
from playwright.sync_api import Page, Route, expect

from tests.entrypoints.openai.real_server import RealServer
from tests.limits import HANG_S
from tests.ui.chat import ChatPage


def number(page: Page, title: str, key: int = 0) -> str:
    chart = page.locator("figure", has=page.get_by_text(title, exact=True))
    return chart.locator(".key b").nth(key).inner_text()


def put_load_on(server: RealServer, num_requests: int) -> threading.Thread:
    """Requests that run at once, for a second or more."""
    body = {"prompt": "Once", "n": num_requests, "max_tokens": 900, "ignore_eos": True}

    def load() -> None:
        httpx.post(f"{server.url}/v1/completions", json=body, timeout=HANG_S)

    thread = threading.Thread(target=load)
    thread.start()
    return thread


def test_charts_move_under_load(chat: ChatPage, server: RealServer) -> None:
    page = chat.page
    thread = put_load_on(server, 12)
    expect(page.locator("#status")).to_contain_text("running")
    throughput = page.locator("figure", has=page.get_by_text("Tokens per second"))
    line = throughput.locator(".line-0").first
    before = line.get_attribute("d")
    expect(line).not_to_have_attribute("d", before or "-")
    thread.join()
    expect(page.locator("#status")).to_have_text("Ready")
    assert number(page, "Time to first token").endswith("s")
    assert number(page, "Inter-token latency", 1).endswith("s")
    assert number(page, "Step time").endswith("s")
    meter = page.get_by_role("meter")
    assert int(meter.get_attribute("aria-valuemax") or 0) > 0


def test_numbers_follow_the_pointer(chat: ChatPage, server: RealServer) -> None:
    page = chat.page
    put_load_on(server, 4).join()
    expect(page.locator("#status")).to_have_text("Ready")
    plot = page.locator("figure svg").first
    box = plot.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] - 2, box["y"] + 10)
    expect(page.locator("figure .cursor").first).not_to_have_attribute("d", "")
    page.mouse.move(10, 10)
    expect(page.locator("figure .cursor").first).to_have_attribute("d", "")


def test_a_hidden_page_asks_for_nothing(page: Page, server: RealServer) -> None:
    page.add_init_script(
        "Object.defineProperty(document, 'hidden', { get: () => window.isAway ?? false })"
    )
    polls: list[str] = []
    page.on("request", lambda r: polls.append(r.url) if "/ui/live" in r.url else None)
    page.clock.install()
    ChatPage(page, server.url).open()
    turn = (
        "(away) => { window.isAway = away; document.dispatchEvent(new Event('visibilitychange')) }"
    )
    page.evaluate(turn, True)
    asked = len(polls)
    page.clock.run_for(60_000)
    assert len(polls) == asked
    with page.expect_request("**/ui/live*"):
        page.evaluate(turn, False)


def test_only_new_samples_are_asked_for(chat: ChatPage) -> None:
    with chat.page.expect_request(lambda r: "after=0" not in r.url and "/ui/live" in r.url) as info:
        pass
    answer = info.value.response()
    assert answer is not None
    assert len(answer.json()["live"]["samples"]) <= 3


def test_facts_of_the_server_are_shown(chat: ChatPage) -> None:
    facts = chat.page.locator("#facts")
    for text in ("story", "1,024 tokens", "cpu", "16 tokens"):
        expect(facts).to_contain_text(text)


def test_ranks_are_shown_where_there_are_several(page: Page, server: RealServer) -> None:
    def doubled(route: Route) -> None:
        answer = route.fetch().json()
        (rank,) = answer["facts"]["ranks"]
        assert rank["weights"] > 0
        assert rank["kv_cache"] > 0
        answer["facts"]["ranks"] = [{**rank, "weights": 3 << 28, "kv_cache": 2 << 30}] * 2
        route.fulfill(json=answer)

    page.route("**/ui/live*", doubled)
    page.goto(server.url)
    facts = page.locator("#facts")
    expect(facts).to_contain_text("2, 0.75 GiB of weights and 2.0 GiB of KV cache each")


def test_engines_are_counted_where_there_are_several(page: Page, server: RealServer) -> None:
    def doubled(route: Route) -> None:
        answer = route.fetch().json()
        assert answer["facts"]["num_engines"] == 1
        answer["facts"]["num_engines"] = 2
        answer["facts"]["ranks"] *= 2
        route.fulfill(json=answer)

    facts = page.locator("#facts")
    page.goto(server.url)
    expect(facts).to_contain_text("Device")
    expect(facts).not_to_contain_text("Engines")
    page.route("**/ui/live*", doubled)
    page.goto(server.url)
    expect(facts).to_contain_text("Engines2Ranks2, ")


def test_an_engine_that_stopped_is_seen(page: Page, server: RealServer) -> None:
    def dead(route: Route) -> None:
        answer = route.fetch().json()
        route.fulfill(json={**answer, "is_alive": False})

    page.route("**/ui/live*", dead)
    page.goto(server.url)
    expect(page.locator("#status")).to_have_text("Engine stopped")
