from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core.conftest import BLOCK, PIPELINES, Engine, expected, layout
from tests.core.device_model import BROKEN
from vllm.core.kv_cache.sizing import blocks_per_sequence
from vllm.messages.engine import FinishReason

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3]


@pytest.mark.parametrize(("depth", "num_stages"), PIPELINES)
def test_tokens_do_not_depend_on_depth_and_blocks_come_back(depth: int, num_stages: int) -> None:
    engine = Engine(pipeline_depth=depth, num_stages=num_stages)
    for i in range(5):
        engine.add(str(i), PROMPT[: i + 3], max_tokens=4 + i)
    engine.run()
    for i in range(5):
        assert engine.outputs[str(i)] == expected(PROMPT[: i + 3], 4 + i)
        assert engine.reasons[str(i)] is FinishReason.LENGTH


@pytest.mark.parametrize(("depth", "num_stages"), PIPELINES)
def test_stop_token_ends_request_and_surplus_tokens_are_dropped(
    depth: int, num_stages: int
) -> None:
    plain = expected(PROMPT, 12)
    stop = plain[5]
    engine = Engine(pipeline_depth=depth, num_stages=num_stages)
    engine.add("a", PROMPT, max_tokens=50, stop_token_ids=[stop])
    engine.run()
    assert engine.outputs["a"] == plain[: plain.index(stop) + 1]
    assert engine.reasons["a"] is FinishReason.STOP
    # As many tokens are computed for nothing as further draws were in flight.
    computed = sum(plan.num_tokens for plan in engine.plans)
    surplus = depth - 1 if num_stages == 1 else 0
    assert computed == len(PROMPT) + plain.index(stop) + surplus


def test_eos_has_no_stop_reason_and_a_stop_token_is_its_own() -> None:
    stop = expected(PROMPT, 1)[0]
    engine = Engine(eos_token_ids=frozenset([stop]))
    engine.add("a", PROMPT)
    assert engine.step()[0].stop_reason is None
    engine = Engine()
    engine.add("a", PROMPT, stop_token_ids=[stop])
    assert engine.step()[0].stop_reason == stop


def test_long_prompt_is_cut_into_chunks_and_mixed_with_decodes() -> None:
    engine = Engine(max_num_batched_tokens=8)
    engine.add("a", PROMPT[:4], max_tokens=10)
    engine.step()
    engine.add("b", PROMPT * 3, max_tokens=2)
    engine.run()
    assert engine.outputs["b"] == expected(PROMPT * 3, 2)
    mixed = [p for p in engine.plans if len(p.counts) == 2 and sorted(p.counts)[0] == 1]
    assert max(p.num_tokens for p in mixed) == 8, "a decode row and a chunk share the budget"


def test_without_chunked_prefill_a_prompt_is_computed_whole() -> None:
    engine = Engine(
        max_num_batched_tokens=32, enable_chunked_prefill=False, enable_prefix_caching=False
    )
    engine.add("a", PROMPT * 3)
    engine.add("b", PROMPT * 2)
    engine.run()
    assert sorted({c for plan in engine.plans for c in plan.counts.tolist()} - {1}) == [20, 30]


@pytest.mark.parametrize(("depth", "num_stages"), PIPELINES)
@pytest.mark.parametrize("caching", [False, True])
def test_preempted_requests_are_recomputed_to_the_same_tokens(
    depth: int, num_stages: int, caching: bool
) -> None:
    engine = Engine(
        layout(num_blocks=12),
        pipeline_depth=depth,
        num_stages=num_stages,
        enable_prefix_caching=caching,
        max_model_len=40,
    )
    prompts = [[i, *PROMPT] for i in range(4)]
    for i, prompt in enumerate(prompts):
        engine.add(str(i), prompt, max_tokens=20)
    engine.run()
    assert engine.scheduler.lifecycle.stats.num_preemptions > 0
    for i, prompt in enumerate(prompts):
        assert engine.outputs[str(i)] == expected(prompt, 20)


@pytest.mark.parametrize(("depth", "num_stages"), PIPELINES)
def test_a_prefix_is_shared_from_the_step_after_the_one_that_computes_it(
    depth: int, num_stages: int
) -> None:
    engine = Engine(pipeline_depth=depth, num_stages=num_stages)
    shared = PROMPT * 2
    for i, name in enumerate("abc"):
        engine.add(name, [*shared, i], max_tokens=1)
    engine.add("other", [7] * len(shared), max_tokens=1)
    engine.run()
    first, second = engine.plans[:2]
    assert (first.starts.tolist(), first.counts.tolist()) == ([0, 0], [21, 20]), "a and other"
    assert (second.starts.tolist(), second.counts.tolist()) == ([20, 20], [1, 1]), "b and c"
    for i, name in enumerate("abc"):
        assert engine.outputs[name] == expected([*shared, i], 1)


def test_a_request_does_not_wait_for_the_little_it_could_share() -> None:
    engine = Engine()
    rest = PROMPT * 3
    engine.add("a", [8] * BLOCK + rest, max_tokens=1)
    engine.add("b", [8] * BLOCK + rest[::-1], max_tokens=1)
    engine.run()
    assert engine.plans[0].starts.tolist() == [0, 0]
    assert engine.outputs["b"] == expected([8] * BLOCK + rest[::-1], 1)


def test_requests_wait_while_a_long_prefix_is_computed_in_chunks() -> None:
    engine = Engine(max_num_batched_tokens=16)
    for i, name in enumerate("ab"):
        engine.add(name, PROMPT * 4 + [i], max_tokens=2)
    engine.run()
    computed = sum(plan.num_tokens for plan in engine.plans)
    assert computed == 41 + 1 + 2, "each token once, but for those that only draw"
    for i, name in enumerate("ab"):
        assert engine.outputs[name] == expected(PROMPT * 4 + [i], 2)


def test_no_more_requests_are_looked_at_than_could_run() -> None:
    engine = Engine(max_num_seqs=3)
    matched = []
    match = engine.scheduler.kv.match
    engine.scheduler.kv.match = lambda request, *most: (
        matched.append(request) or match(request, *most)
    )
    for i in range(20):
        engine.add(str(i), PROMPT * 2, max_tokens=1)
    engine.step()
    assert len(matched) == 1 + 2
    engine.run()
    assert all(engine.outputs[str(i)] == expected(PROMPT * 2, 1) for i in range(20))


def test_no_more_long_prompts_are_passed_over_than_could_run() -> None:
    engine = Engine(
        max_num_seqs=3,
        max_num_batched_tokens=16,
        long_prefill_token_threshold=8,
        max_num_partial_prefills=3,
        max_long_partial_prefills=1,
    )
    matched = []
    match = engine.scheduler.kv.match
    engine.scheduler.kv.match = lambda request, *most: (
        matched.append(request) or match(request, *most)
    )
    for i in range(20):
        engine.add(str(i), [i, *PROMPT * 2], max_tokens=1)
    engine.step()
    assert len(matched) == 1 + 3
    engine.run()
    assert all(engine.outputs[str(i)] == expected([i, *PROMPT * 2], 1) for i in range(20))


def test_an_aborted_request_leaves_what_its_step_computes() -> None:
    engine = Engine(pipeline_depth=4)
    engine.add("a", PROMPT * 2, max_tokens=1)
    engine.add("b", PROMPT * 2, max_tokens=1)
    engine.step()
    engine.scheduler.abort("a")
    engine.run()
    assert engine.plans[1].starts.tolist() == [16]
    assert engine.outputs["b"] == expected(PROMPT * 2, 1)


def test_fully_cached_prompt_still_computes_one_token() -> None:
    engine = Engine()
    prompt = PROMPT[: 2 * BLOCK]
    for name in "ab":
        engine.add(name, prompt, max_tokens=2)
        engine.run()
        assert engine.outputs[name] == expected(prompt, 2)
    assert engine.scheduler.lifecycle.stats.prefix_hits == BLOCK


@pytest.mark.parametrize(("depth", "num_stages"), PIPELINES)
def test_nobody_starts_from_what_a_request_without_a_token_computed(
    depth: int, num_stages: int
) -> None:
    engine = Engine(pipeline_depth=depth, num_stages=num_stages)
    engine.add("broken", PROMPT * 2, seed=BROKEN)
    engine.run()
    assert engine.reasons["broken"] is FinishReason.ERROR
    engine.add("next", PROMPT * 2, max_tokens=1)
    engine.run()
    assert engine.plans[-1].starts.tolist() == [0]
    assert engine.outputs["next"] == expected(PROMPT * 2, 1)


def test_nor_from_what_one_computed_that_was_aborted_meanwhile() -> None:
    engine = Engine(pipeline_depth=4)
    engine.add("broken", PROMPT * 2, seed=BROKEN)
    engine.add("other", [7], max_tokens=8)
    engine.step()
    engine.scheduler.abort("broken")
    engine.run()
    engine.add("next", PROMPT * 2, max_tokens=1)
    engine.run()
    assert engine.plans[-1].starts.tolist() == [0]


@pytest.mark.parametrize("hybrid", [False, True])
def test_nor_from_blocks_that_a_window_has_passed(hybrid: bool) -> None:
    engine = Engine(layout(window=8, hybrid=hybrid), max_num_batched_tokens=8)
    engine.add("broken", PROMPT * 4, seed=BROKEN)
    engine.run()
    assert engine.scheduler.kv.pool.num_known == 0


def test_requests_with_different_salts_share_nothing() -> None:
    engine = Engine()
    for name, salt in (("a", None), ("b", "x"), ("c", "y"), ("d", "x")):
        engine.add(name, PROMPT, cache_salt=salt)
        engine.run()
    assert engine.scheduler.lifecycle.stats.prefix_hits == 2 * BLOCK, "only d finds b's blocks"


def test_prompt_logprobs_recompute_the_whole_prompt() -> None:
    engine = Engine()
    engine.add("a", PROMPT)
    engine.run()
    engine.add("b", PROMPT, prompt_logprobs=1)
    engine.run()
    assert engine.scheduler.lifecycle.stats.prefix_hits == 0


def test_priority_is_served_first_and_preempted_last() -> None:
    engine = Engine(layout(num_blocks=10), policy="priority", max_num_seqs=2, max_model_len=36)
    engine.add("low", PROMPT, priority=5, max_tokens=12)
    engine.add("high", [7, *PROMPT], priority=-1, max_tokens=12)
    engine.add("middle", [8, *PROMPT], priority=1, max_tokens=12)
    order = []
    while engine.scheduler.has_work:
        order += [u.request_id for u in engine.step() if u.finish_reason is not None]
    assert order == ["high", "middle", "low"]


def test_fcfs_keeps_the_place_of_a_preempted_request() -> None:
    engine = Engine(layout(num_blocks=12), max_model_len=40)
    for name in "abcd":
        engine.add(name, [ord(name), *PROMPT], max_tokens=20)
    order = []
    while engine.scheduler.has_work:
        order += [u.request_id for u in engine.step() if u.finish_reason is not None]
    assert order == sorted(order)


@pytest.mark.parametrize(("depth", "num_stages"), PIPELINES)
def test_abort_frees_everything_wherever_the_request_is(depth: int, num_stages: int) -> None:
    engine = Engine(pipeline_depth=depth, num_stages=num_stages, max_num_seqs=1)
    engine.add("running", PROMPT, max_tokens=50)
    engine.add("waiting", PROMPT, max_tokens=50)
    engine.step()
    engine.scheduler.abort("waiting")
    engine.scheduler.abort("running")
    engine.scheduler.abort("unknown")
    engine.run()
    assert engine.reasons == {"waiting": FinishReason.ABORT, "running": FinishReason.ABORT}


def test_a_request_whose_values_the_host_needs_is_never_drawn_ahead() -> None:
    engine = Engine(pipeline_depth=4)
    engine.add("host", PROMPT, logits_processors=[lambda ids, logits: logits])
    engine.add("device", PROMPT[:5])
    most = 0
    while engine.scheduler.has_work:
        engine.step()
        request = engine.scheduler.lifecycle.by_id.get("host")
        most = max(most, request.num_pending if request else 0)
    assert most <= 1
    assert engine.outputs["host"] == expected(PROMPT, 8)
    assert any(len(p.slots) == 1 for p in engine.plans), "the other request went on alone"


def test_max_model_len_ends_a_request() -> None:
    engine = Engine(max_model_len=16)
    engine.add("a", PROMPT, max_tokens=100)
    engine.run()
    assert len(engine.outputs["a"]) == 6
    assert engine.reasons["a"] is FinishReason.LENGTH


def test_min_tokens_holds_back_stop_tokens() -> None:
    plain = expected(PROMPT, 20)
    engine = Engine()
    engine.add("a", PROMPT, max_tokens=20, min_tokens=4, stop_token_ids=plain[:4])
    engine.run()
    assert len(engine.outputs["a"]) >= 4


def test_long_prompts_leave_room_for_short_ones() -> None:
    engine = Engine(
        max_num_batched_tokens=16,
        long_prefill_token_threshold=8,
        max_num_partial_prefills=3,
        max_long_partial_prefills=1,
    )
    engine.add("long1", PROMPT * 4)
    engine.add("long2", [0, *PROMPT * 4])
    engine.add("short", PROMPT[1:7])
    engine.step()
    assert sorted(engine.plans[0].counts.tolist()) == [6, 8], "short overtakes long2"
    engine.run()
    assert engine.outputs["long2"] == expected([0, *PROMPT * 4], 8)


def test_sliding_window_gives_back_passed_blocks_and_still_matches_prefixes() -> None:
    kv = layout(num_blocks=32, window=6)
    engine = Engine(kv, max_model_len=100, max_num_batched_tokens=8)
    engine.add("a", PROMPT * 5, max_tokens=20)
    held = 0
    while engine.scheduler.has_work:
        engine.step()
        held = max(held, kv.num_blocks - 1 - engine.scheduler.kv.pool.num_free)
    assert held <= 5, "window 6 and a step of 8 in blocks of 4"
    assert engine.outputs["a"] == expected(PROMPT * 5, 20)
    engine.add("b", PROMPT * 5, max_tokens=20)
    engine.run()
    assert engine.outputs["b"] == expected(PROMPT * 5, 20)
    assert engine.scheduler.lifecycle.stats.prefix_hits == 48


def test_prompt_and_drawn_tokens_are_counted_apart() -> None:
    engine = Engine(max_num_batched_tokens=4)
    engine.add("a", PROMPT, max_tokens=3)
    engine.run()
    stats = engine.scheduler.snapshot()
    assert (stats.num_prompt_tokens, stats.num_generation_tokens) == (len(PROMPT), 3)


@pytest.mark.parametrize("caching", [False, True])
@pytest.mark.parametrize(
    ("window", "depth", "num_stages", "budget"),
    [(5, 1, 1, 3), (4, 2, 1, 1), (7, 2, 1, 2), (6, 4, 1, 3), (6, 4, 3, 3), (4, 3, 3, 1)],
)
def test_the_smallest_pool_for_a_window_serves_a_long_sequence(
    window: int, depth: int, num_stages: int, budget: int, caching: bool
) -> None:
    groups = layout(2, window).groups
    needed = blocks_per_sequence(groups, 100, budget * depth)
    engine = Engine(
        layout(1 + needed, window),
        pipeline_depth=depth,
        num_stages=num_stages,
        max_num_batched_tokens=budget,
        max_num_seqs=1,
        enable_prefix_caching=caching,
        max_model_len=100,
    )
    engine.add("a", PROMPT * 8, max_tokens=15)
    engine.run()
    assert engine.outputs["a"] == expected(PROMPT * 8, 15)
    assert engine.scheduler.lifecycle.stats.num_preemptions == 0


request_strategy = st.fixed_dictionaries(
    {
        "prefix": st.integers(0, 2),
        "length": st.integers(1, 40),
        "max_tokens": st.integers(1, 25),
        "stop": st.one_of(st.none(), st.integers(0, 49)),
        "priority": st.integers(0, 2),
        "delay": st.integers(0, 6),
        "abort_after": st.one_of(st.none(), st.integers(0, 12)),
        "seed": st.integers(0, 1),
    }
)


@settings(max_examples=120, deadline=None)
@given(
    requests=st.lists(request_strategy, min_size=1, max_size=10),
    pipeline=st.sampled_from(PIPELINES),
    least_steady_rows=st.sampled_from([0, 2, 100]),
    chunked=st.booleans(),
    caching=st.booleans(),
    policy=st.sampled_from(["fcfs", "priority"]),
    num_blocks=st.integers(18, 60),
    kind=st.sampled_from(["full", "sliding", "hybrid"]),
    threshold=st.sampled_from([0, 5]),
)
def test_any_mix_gives_each_request_its_own_tokens(
    requests: list[dict[str, Any]],
    pipeline: tuple[int, int],
    least_steady_rows: int,
    chunked: bool,
    caching: bool,
    policy: str,
    num_blocks: int,
    kind: str,
    threshold: int,
) -> None:
    window = None if kind == "full" else 6
    kv = layout(num_blocks * (2 if kind == "hybrid" else 1), window, hybrid=kind == "hybrid")
    engine = Engine(
        kv,
        pipeline_depth=pipeline[0],
        num_stages=pipeline[1],
        least_steady_rows=least_steady_rows,
        enable_chunked_prefill=chunked,
        max_num_batched_tokens=16 if chunked else 64,
        enable_prefix_caching=caching,
        policy=policy,
        max_num_seqs=4,
        max_model_len=64,
        long_prefill_token_threshold=threshold if chunked else 0,
        max_num_partial_prefills=2,
    )
    prompts = {}
    for tick in range(20):
        for i, r in enumerate(requests):
            name = str(i)
            if tick == r["delay"]:
                prompts[name] = [r["prefix"]] * r["length"]
                stops = [] if r["stop"] is None else [r["stop"]]
                engine.add(
                    name,
                    prompts[name],
                    r["priority"],
                    max_tokens=r["max_tokens"],
                    stop_token_ids=stops,
                    seed=r["seed"],
                )
            if r["abort_after"] is not None and tick == r["delay"] + r["abort_after"]:
                engine.scheduler.abort(name)
        engine.step()
    engine.run()
    for i, r in enumerate(requests):
        name = str(i)
        stops = frozenset() if r["stop"] is None else frozenset([r["stop"]])
        count = min(r["max_tokens"], 64 - len(prompts[name]))
        full = expected(prompts[name], count, r["seed"], stops)
        if engine.reasons[name] is FinishReason.ABORT:
            assert engine.outputs[name] == full[: len(engine.outputs[name])]
        else:
            assert engine.outputs[name] == full
