"""What routes add to steps for front ends that choose among cores: counts, loads and news."""

from __future__ import annotations

import pytest

from tests.engine.test_front_ends import RecordedLink, request
from vllm.engine.routes import STATS_S, ManyFrontEnds, OneFrontEnd, Routes
from vllm.messages.engine import (
    Abort,
    CacheNews,
    EngineRequest,
    EngineStats,
    FinishReason,
    RequestUpdate,
    StepUpdates,
)
from vllm.sampling_params import SamplingParams

ABORT = FinishReason.ABORT


def estimated(request_id: str, num_uncached: int) -> EngineRequest:
    params = SamplingParams(max_tokens=4)
    return EngineRequest(request_id, [1], params, 0.0, num_uncached=num_uncached)


class Core:
    """Routes, and the time of their clock."""

    def __init__(self, num_front_ends: int, is_single: bool = False) -> None:
        self.now_s = 0.0
        self.link = RecordedLink(num_front_ends)
        self.routes: Routes = (
            OneFrontEnd(self.link)
            if is_single
            else ManyFrontEnds(self.link, clock=lambda: self.now_s)
        )

    def step(
        self, *updates: RequestUpdate, news: CacheNews | None = None, num_running: int = 1
    ) -> dict[int, StepUpdates]:
        """Messages of the step, by front end."""
        stats = EngineStats(num_running=num_running)
        self.routes.send(StepUpdates(list(updates), stats, 0.0, core=3, news=news))
        return {
            front_end: message
            for front_end, message in self.link.take_sent()
            if isinstance(message, StepUpdates)
        }


@pytest.mark.parametrize("is_single", [True, False])
def test_a_request_is_pending_until_its_first_token_or_its_end(is_single: bool) -> None:
    core = Core(1, is_single)
    for name, num_uncached in (("a", 100), ("b", 20), ("c", 3), ("none", 0)):
        core.routes.take(0, estimated(name, num_uncached))
    core.routes.take(0, Abort(["b"]))
    seen = [
        core.step(),
        core.step(RequestUpdate("none", [5], slot=2)),
        core.step(RequestUpdate("a", [5], slot=1), RequestUpdate("c", [])),
        core.step(RequestUpdate("b", [], finish_reason=ABORT)),
        core.step(RequestUpdate("a", [6]), RequestUpdate("c", [7], finish_reason=ABORT)),
    ]
    assert [messages[0].stats.num_pending_tokens for messages in seen] == [123, 123, 23, 3, 0]
    assert {messages[0].num_taken for messages in seen} == {4}
    assert {messages[0].core for messages in seen} == {3}


def test_each_front_end_hears_how_many_requests_came_from_it_and_what_is_pending_of_all() -> None:
    core = Core(2)
    core.routes.take(0, estimated("a", 5))
    core.routes.take(1, estimated("b", 6))
    core.routes.take(1, estimated("c", 7))
    messages = core.step()
    assert [messages[i].num_taken for i in (0, 1)] == [1, 2]
    assert [messages[i].stats.num_pending_tokens for i in (0, 1)] == [18, 18]


def test_a_request_that_is_refused_counts_as_taken_and_not_as_pending() -> None:
    core = Core(2)
    core.routes.take(0, estimated("a", 5))
    assert not core.routes.take(1, estimated("a", 50))
    ((_, answer),) = core.link.take_sent()
    assert isinstance(answer, StepUpdates)
    assert answer.num_taken == 1
    assert core.step()[0].stats.num_pending_tokens == 5


def test_a_single_front_end_gets_news_with_their_step() -> None:
    core = Core(1, is_single=True)
    news = CacheNews(b"12345678", b"abcdefgh")
    assert core.step(news=news)[0].news == news
    assert core.step()[0].news is None


def test_news_wait_for_the_next_message_to_a_front_end_without_what_was_undone() -> None:
    core = Core(2)
    core.routes.take(0, request("a"))
    core.step()  # both: the first statistics
    one, two, three = (bytes([i]) * 8 for i in (1, 2, 3))
    update = RequestUpdate("a", [5])
    messages = core.step(update, news=CacheNews(one + two))
    assert messages.keys() == {0}
    assert messages[0].news == CacheNews(one + two)
    messages = core.step(update, news=CacheNews(three, two))
    assert messages[0].news == CacheNews(three, two)
    assert core.step(update)[0].news is None
    core.now_s += STATS_S
    messages = core.step(update)
    assert messages[0].news is None
    assert messages[1].news == CacheNews(one + three)
    core.step(update, news=CacheNews(b"", one))
    core.step(update, news=CacheNews(one))
    core.now_s += STATS_S
    assert core.step(update)[1].news is None
