"""Which core gets a request, and what is left of requests that have ended."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from tests.core.conftest import Engine, layout
from tests.engine.test_front_ends import RecordedLink
from vllm.config.vllm import VllmConfig
from vllm.engine.balance import (
    Balance,
    CacheBalance,
    Choice,
    FirstDone,
    LeastLoaded,
    make_balance,
)
from vllm.engine.cache_view import CacheView
from vllm.engine.routes import ManyFrontEnds, refusal_of
from vllm.messages.codec import encoder
from vllm.messages.engine import (
    CacheNews,
    EngineReady,
    EngineRequest,
    EngineStats,
    FinishReason,
    RequestUpdate,
    StepUpdates,
)
from vllm.sampling_params import SamplingParams

BLOCK = 4  # tokens, of the schedulers too
NUM_BLOCKS = 64
BOTH = (0, 1)


class Cluster:
    """Schedulers behind routes, and front ends with a balance each."""

    def __init__(
        self,
        num_front_ends: int = 1,
        num_cores: int = 2,
        num_blocks: int = NUM_BLOCKS,
        open_tokens: int = 0,
        **changes: Any,
    ) -> None:
        self.changes = {"balances_by_cache": True, "num_blocks": num_blocks, **changes}
        self.fronts: list[Balance] = [
            CacheBalance([num_blocks] * num_cores, BLOCK, open_tokens)
            for _ in range(num_front_ends)
        ]
        self.engines: list[Engine] = []
        self.routes: list[ManyFrontEnds] = []
        self.links: list[RecordedLink] = []
        for _ in range(num_cores):
            self.engines.append(self.start())
            self.links.append(RecordedLink(num_front_ends))
            self.routes.append(ManyFrontEnds(self.links[-1], clock=lambda: self.now_s))
        self.now_s = 0.0
        self.usable: Sequence[int] = range(num_cores)
        self.answers: dict[str, list[int]] = {}
        self.cached: dict[str, int] = {}  # as the core found
        self.num_asked = 0

    def start(self) -> Engine:
        changes = dict(self.changes)
        return Engine(layout(changes.pop("num_blocks")), **changes)

    def ask(
        self,
        prompt: list[int],
        core: int | None = None,
        front_end: int = 0,
        max_tokens: int = 4,
        prompt_logprobs: int | None = None,
        salt: str | None = None,
    ) -> tuple[str, Choice]:
        self.num_asked += 1
        name = str(self.num_asked)
        params = SamplingParams(max_tokens=max_tokens, prompt_logprobs=prompt_logprobs, seed=0)
        request = EngineRequest(name, prompt, params, 0.0, cache_salt=salt, core=core)
        choice = self.fronts[front_end].place(request, self.usable)
        request = EngineRequest(
            name, prompt, params, 0.0, cache_salt=salt, num_uncached=choice.num_uncached
        )
        self.answers[name] = []
        assert self.routes[choice.core].take(front_end, request)
        self.engines[choice.core].scheduler.add(request)
        self.engines[choice.core].outputs[name] = []
        return name, choice

    def abort(self, core: int, name: str) -> None:
        self.engines[core].scheduler.abort(name)

    def step(self, core: int) -> None:
        """If there is anything to do."""
        engine = self.engines[core]
        if not (engine.scheduler.has_work or engine.inflight):
            return
        updates, scheduler = engine.step(), engine.scheduler
        news = scheduler.kv.take_news()
        stats = scheduler.snapshot()
        self.routes[core].send(StepUpdates(updates, stats, 0.0, core=core, news=news))
        for update in updates:
            self.answers[update.request_id] += update.token_ids
            if update.token_ids:
                self.cached.setdefault(update.request_id, update.num_cached_tokens)
        self.deliver(core)

    def deliver(self, core: int) -> None:
        for front_end, message in self.links[core].take_sent():
            assert isinstance(message, StepUpdates)
            self.fronts[front_end].update(message)

    def run(self) -> None:
        while any(engine.scheduler.has_work or engine.inflight for engine in self.engines):
            for core in range(len(self.engines)):
                self.step(core)

    def restart(self, core: int) -> None:
        self.engines[core] = self.start()
        self.links[core].take_sent()
        self.routes[core] = ManyFrontEnds(self.links[core], clock=lambda: self.now_s)
        for front in self.fronts:
            front.reset(core)

    def check_idle(self) -> None:
        """Assert that nothing is left of requests, and that front ends know what cores know."""
        self.now_s += 1.0
        for index, engine in enumerate(self.engines):
            stats, news = engine.scheduler.snapshot(), engine.scheduler.kv.take_news()
            self.routes[index].send(StepUpdates([], stats, 0.0, core=index, news=news))
            self.deliver(index)
            for front in self.fronts:
                core = front.cores[index]
                assert not core.cache.expected and not core.cache._by_request
                assert core.cache._num_names == 0
                assert core.num_open == core.num_pending_tokens == 0
                assert len(core.cache.known) == engine.scheduler.kv.pool.num_known
        assert not any(front._waiting for front in self.fronts)


def prompt_of(num_tokens: int, seed: int = 0) -> list[int]:
    dice = random.Random(seed)
    return [dice.randrange(50) for _ in range(num_tokens)]


# -- the rule of caches ---------------------------------------------------------------------------


def test_a_conversation_stays_where_it_began() -> None:
    cluster = Cluster()
    histories, homes = [prompt_of(20, seed=i) for i in range(4)], {}
    for turn in range(4):
        names = {}
        for i, history in enumerate(histories):
            name, choice = cluster.ask(history)
            names[i] = name
            assert homes.setdefault(i, choice.core) == choice.core
            if turn:
                assert choice.num_uncached < 10
        cluster.run()
        for i, name in names.items():
            assert cluster.cached[name] >= (20 + 6 * (turn - 1)) // BLOCK * BLOCK * bool(turn)
            histories[i] += [*cluster.answers[name], turn, i]
    assert sorted(homes.values()) == [0, 0, 1, 1]
    cluster.check_idle()


def test_estimates_are_what_the_core_finds_when_it_finds_everything_as_it_was() -> None:
    cluster = Cluster()
    dice = random.Random(3)
    for _ in range(30):
        prompt = prompt_of(40, seed=dice.randrange(3))[: dice.randint(1, 40)]
        prompt += prompt_of(dice.randint(1, 9), seed=dice.randrange(99))
        name, choice = cluster.ask(prompt, core=dice.choice(BOTH))
        cluster.run()
        assert cluster.cached[name] == len(prompt) - choice.num_uncached
    cluster.check_idle()


def test_a_burst_stays_with_a_prefix_that_is_cached_until_the_wait_is_longer() -> None:
    cluster = Cluster()
    prefix = prompt_of(40)
    _, first = cluster.ask(prefix)
    cluster.run()
    choices = [cluster.ask([*prefix, *prompt_of(8, seed=i)])[1] for i in range(13)]
    # Elsewhere each would compute 48 tokens, which weigh 96. Here it computes 8, which weigh 16,
    # after 8 of each before: the eleventh waits as long there as it would here.
    homes = [choice.core for choice in choices]
    assert homes == [first.core] * 10 + [1 - first.core] * 3
    assert [choice.num_uncached for choice in choices] == [8] * 10 + [48, 8, 8]


def test_a_burst_with_a_new_prefix_computes_it_on_a_second_core_when_the_first_is_behind() -> None:
    cluster = Cluster()
    prefix = prompt_of(40)
    choices = [cluster.ask([*prefix, *prompt_of(8, seed=i)])[1] for i in range(8)]
    assert [choice.num_uncached for choice in choices] == [48, 8, 8, 8, 8, 48, 8, 8]
    assert [choice.core for choice in choices] == [0] * 5 + [1] * 3
    cluster.run()
    cluster.check_idle()


def test_a_short_shared_prefix_does_not_keep_requests_together() -> None:
    cluster = Cluster()
    shared = prompt_of(8)
    cluster.ask(shared)
    cluster.run()
    cores = [cluster.ask([*shared, *prompt_of(30, seed=i)])[1].core for i in range(6)]
    assert sorted(cores) == [0, 0, 0, 1, 1, 1]


def test_open_requests_outweigh_a_short_prefix_and_not_a_long_one() -> None:
    cluster = Cluster(open_tokens=20)
    short, long = prompt_of(8), prompt_of(60, seed=1)
    (_, home), _ = cluster.ask(short, core=0), cluster.ask(long, core=0)
    cluster.run()
    for i in range(3):
        cluster.ask([i], core=0, max_tokens=20)
    for _ in range(2):
        cluster.step(0)
    assert home.core == 0
    assert cluster.fronts[0].cores[0].stats.num_running == 3
    assert cluster.ask([*short, 1])[1].core == 1
    assert cluster.ask([*long, 1])[1].core == 0


def test_equal_cores_take_turns() -> None:
    cluster = Cluster(num_cores=3)
    cores = []
    for i in range(6):
        cores.append(cluster.ask(prompt_of(9, seed=i))[1].core)
        cluster.run()
    assert cores == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize("make", [CacheBalance, LeastLoaded])
def test_a_forced_core_is_obeyed_and_others_are_not_used_unless_usable(
    make: type[Balance],
) -> None:
    balance = make([NUM_BLOCKS] * 3, BLOCK)
    params = SamplingParams(max_tokens=1)

    def core_of(name: str, usable: Iterable[int], forced: int | None = None) -> int:
        request = EngineRequest(name, [1, 2], params, 0.0, core=forced)
        return balance.place(request, list(usable)).core

    assert [core_of(f"a{i}", (0, 1, 2), forced=2) for i in range(4)] == [2] * 4
    assert core_of("b", (), forced=1) == 1
    assert [core_of(f"c{i}", (2,)) for i in range(3)] == [2] * 3
    assert {core_of(f"d{i}", (1, 2)) for i in range(6)} == {1}


def test_prompts_with_log_probabilities_and_of_other_salts_find_nothing() -> None:
    cluster = Cluster()
    prompt = prompt_of(20)
    cluster.ask(prompt, core=1)
    cluster.run()
    assert cluster.ask(prompt)[1] == Choice(1, 4)
    cluster.run()
    assert cluster.ask(prompt, prompt_logprobs=0)[1].num_uncached == 20
    assert cluster.ask(prompt, salt="a", core=1)[1].num_uncached == 20
    cluster.run()
    assert cluster.ask(prompt, salt="a")[1] == Choice(1, 4)


def test_a_core_that_restarts_has_nothing_and_owes_nothing() -> None:
    cluster = Cluster()
    prompt = prompt_of(40)
    cluster.ask(prompt, core=0)
    cluster.run()
    name, _ = cluster.ask(prompt_of(30, seed=1), core=0)
    stays, _ = cluster.ask(prompt_of(10, seed=2), core=1)
    cluster.restart(0)
    front = cluster.fronts[0]
    assert front.cores[0].num_open == front.cores[0].num_pending_tokens == 0
    assert front._waiting.keys() == {stays}
    assert cluster.ask(prompt)[1] == Choice(0, 40)
    assert name != stays
    cluster.run()
    assert cluster.ask(prompt)[1] == Choice(0, 4)
    cluster.run()
    cluster.check_idle()


def test_a_prefix_cache_that_was_reset_attracts_no_more() -> None:
    cluster = Cluster()
    prompt = prompt_of(40)
    cluster.ask(prompt, core=1)
    cluster.run()
    assert cluster.engines[1].scheduler.kv.pool.forget_all()
    cluster.ask([1], core=1)
    cluster.run()  # any message brings it
    assert cluster.ask(prompt)[1] == Choice(0, 40)


def test_two_front_ends_know_of_each_others_prefixes_and_loads() -> None:
    cluster = Cluster(num_front_ends=2)
    prompt = prompt_of(40)
    cluster.ask(prompt, front_end=0)
    cluster.run()
    cluster.now_s += 1.0
    assert cluster.ask([*prompt, 1], front_end=1)[1] == Choice(0, 1)
    for i in range(3):
        cluster.ask(prompt_of(50, seed=9 + i), core=0, front_end=0, max_tokens=1)
    cluster.step(0)  # computes 1 + 50 + 13 tokens: two of three are pending
    seen = cluster.fronts[1].cores[0]
    assert seen.num_pending_tokens == 100
    assert cluster.ask(prompt, front_end=1)[1] == Choice(1, 40)
    cluster.run()
    cluster.check_idle()


def check_counts(cluster: Cluster) -> None:
    """Assert that statistics take the place of a request that waits for its first token."""
    core = cluster.fronts[0].cores[0]
    cluster.ask(prompt_of(100), core=0)
    assert (core.num_open, core.num_pending_tokens) == (1, 100)
    cluster.now_s += 1.0
    cluster.step(0)  # computes 64 tokens
    assert (core.num_open, core.num_pending_tokens) == (1, 100)
    assert core.stats.num_running == 1
    cluster.run()
    cluster.check_idle()


def test_a_request_that_could_not_be_sent_leaves_nothing() -> None:
    cluster = Cluster()
    front = cluster.fronts[0]
    params = SamplingParams(max_tokens=1)
    for _ in range(3):
        front.place(EngineRequest("lost", prompt_of(20), params, 0.0, core=0), BOTH)
        front.withdraw("lost")
    front.withdraw("unknown")
    check_counts(cluster)


def test_a_request_that_the_core_cannot_read_does_not_count_for_ever() -> None:
    cluster = Cluster()
    front = cluster.fronts[0]
    params = SamplingParams(max_tokens=1)
    for name in ("broken-1", "broken-2"):
        front.place(EngineRequest(name, prompt_of(20), params, 0.0, core=0), BOTH)
        data = encoder().encode({"type": "EngineRequest", "request_id": name})
        answer = refusal_of(memoryview(data), EngineStats())
        assert isinstance(answer, StepUpdates)
        front.update(answer)
    cluster.check_idle()
    check_counts(cluster)


def test_an_end_of_a_request_at_another_core_is_not_that_of_its_namesake() -> None:
    balance = FirstDone([NUM_BLOCKS] * 2, BLOCK, open_tokens=0)
    assert place(balance, "a") == 0
    balance.withdraw("a")
    assert [place(balance, name) for name in "ba"] == [0, 1]
    end = RequestUpdate("a", [], finish_reason=FinishReason.ABORT)
    balance.update(StepUpdates([end], EngineStats(), 0.0, core=0, num_taken=1))
    assert balance._waiting.keys() == {"a", "b"}


# -- the rule of counts, and of prompts alone -----------------------------------------------------


def updates_of(core: int, num_taken: int, **stats: int) -> StepUpdates:
    return StepUpdates([], EngineStats(**stats), 0.0, core=core, num_taken=num_taken)


def place(balance: Balance, name: str, num_tokens: int = 5) -> int:
    params = SamplingParams(max_tokens=1)
    request = EngineRequest(name, [1] * num_tokens, params, 0.0)
    core, num_uncached = balance.place(request, BOTH)
    assert num_uncached == num_tokens
    return core


def test_the_least_loaded_core_has_the_fewest_rows_where_one_that_waits_is_four() -> None:
    balance = LeastLoaded([NUM_BLOCKS] * 2, BLOCK)
    balance.update(updates_of(0, 0, num_running=5))
    balance.update(updates_of(1, 0, num_waiting=1))
    # 5 to 4, and then 5 to 8: a request on its way waits.
    assert [place(balance, name) for name in "ab"] == [1, 0]
    balance.update(updates_of(0, 1, num_running=6))
    balance.update(updates_of(1, 1, num_running=7))
    assert place(balance, "c") == 0


def test_statistics_replace_requests_that_they_reflect_and_no_others() -> None:
    balance = FirstDone([NUM_BLOCKS] * 2, BLOCK, open_tokens=0)
    assert [place(balance, name, 10) for name in "abcd"] == [0, 1, 0, 1]
    balance.update(updates_of(0, 1, num_waiting=1, num_pending_tokens=10))
    assert [core.num_pending_tokens for core in balance.cores] == [20, 20]
    balance.update(updates_of(0, 2, num_running=2, num_pending_tokens=3))
    assert [core.num_pending_tokens for core in balance.cores] == [3, 20]
    assert [place(balance, name, 10) for name in "efg"] == [0, 0, 1]


def test_prompts_alone_go_where_the_fewest_tokens_wait() -> None:
    balance = FirstDone([0, 0], BLOCK, open_tokens=0)
    assert [place(balance, str(n), n) for n in (100, 10, 20, 30, 50)] == [0, 1, 1, 1, 1]


def test_the_rule_is_that_of_the_configuration(config: VllmConfig) -> None:
    def made(num_blocks: int = 9, size: int = 2, balance: str = "", caching: bool = True) -> Any:
        rule = balance or "prefix-cache"
        parallel = dataclasses.replace(
            config.parallel, data_parallel_size=size, data_parallel_balance=rule
        )
        cache = SimpleNamespace(enable_prefix_caching=caching)
        changed: Any = SimpleNamespace(parallel=parallel, cache=cache)
        ready = EngineReady(num_blocks=num_blocks, block_size=16, start_s=0.0)
        return type(make_balance(changed, [ready] * size))

    assert made() is CacheBalance
    assert made(balance="least-loaded") is LeastLoaded
    assert made(caching=False) is FirstDone
    assert made(num_blocks=0) is FirstDone  # a model without a KV cache


# -- what is kept ---------------------------------------------------------------------------------


def test_no_more_blocks_are_expected_than_a_core_has_and_the_oldest_go_first() -> None:
    view = CacheView(num_blocks=10)
    shared = [1, 2, 3]
    for i in range(5):
        view.expect(str(i), [*shared, 10 + i])
    assert view.expected == {1: 2, 2: 2, 3: 2, 13: 1, 14: 1}
    view.settle("0")  # forgotten before
    view.settle("4")
    assert view.num_found([1, 2, 3, 13, 14], 5) == 4
    view.settle("3")
    assert not view.expected
    view.expect("long", list(range(100)))
    assert len(view.expected) == 10


def test_what_is_known_does_not_depend_on_what_was_expected() -> None:
    view = CacheView(num_blocks=10)
    view.expect("a", [1, 2])
    view.learn(CacheNews((1).to_bytes(8, "little")))
    view.settle("a")
    assert (view.known, view.expected) == ({1}, {})
    view.learn(CacheNews(b"", (1).to_bytes(8, "little")))
    assert view.num_found([1], 1) == 0


class BalanceMachine(RuleBasedStateMachine):
    """Random requests, steps, ends and restarts: nothing is left when all have ended."""

    @initialize(
        num_front_ends=st.sampled_from([1, 2]),
        num_blocks=st.sampled_from([17, 40, 200]),  # 16 blocks: one request of full length
        depth=st.sampled_from([1, 2]),
    )
    def begin(self, num_front_ends: int, num_blocks: int, depth: int) -> None:
        self.cluster = Cluster(
            num_front_ends, num_blocks=num_blocks, pipeline_depth=depth, max_model_len=64
        )
        self.open: list[tuple[int, str]] = []

    @rule(
        seed=st.integers(0, 3),
        num_tokens=st.integers(1, 50),
        max_tokens=st.integers(1, 8),
        core=st.sampled_from([None, None, 0, 1]),
        front_end=st.integers(0, 1),
    )
    def ask(
        self, seed: int, num_tokens: int, max_tokens: int, core: int | None, front_end: int
    ) -> None:
        cluster = self.cluster
        prompt = prompt_of(num_tokens, seed)
        name, choice = cluster.ask(
            prompt, core, front_end % len(cluster.fronts), max_tokens=max_tokens
        )
        assert 1 <= choice.num_uncached <= num_tokens
        self.open.append((choice.core, name))

    @rule(core=st.sampled_from(BOTH), count=st.integers(1, 5))
    def step(self, core: int, count: int) -> None:
        for _ in range(count):
            self.cluster.step(core)

    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        if self.open:
            self.cluster.abort(*self.open.pop(data.draw(st.integers(0, len(self.open) - 1))))

    @rule(seconds=st.sampled_from([0.1, 0.3]))
    def wait(self, seconds: float) -> None:
        self.cluster.now_s += seconds

    @rule(core=st.sampled_from(BOTH))
    def restart(self, core: int) -> None:
        self.cluster.restart(core)
        self.open = [(other, name) for other, name in self.open if other != core]

    @rule(core=st.sampled_from(BOTH))
    def reset_prefix_cache(self, core: int) -> None:
        self.cluster.engines[core].scheduler.kv.pool.forget_all()

    @rule()
    def drain(self) -> None:
        self.cluster.run()
        self.cluster.check_idle()
        self.open.clear()

    def teardown(self) -> None:
        if hasattr(self, "cluster"):
            self.drain()


TestBalance = BalanceMachine.TestCase
TestBalance.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
