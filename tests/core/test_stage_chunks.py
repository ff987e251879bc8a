"""With pipeline stages, steps that follow each other have as much of prompts to compute."""

from __future__ import annotations

import itertools

from tests.core.conftest import Engine, expected, layout
from vllm.core.stage_chunks import PIECES_PER_STAGE

STAGES = 2
FEWEST = 8


def make_engine(num_stages: int = STAGES, depth: int = STAGES, **options: object) -> Engine:
    return Engine(
        layout(num_blocks=512),
        num_stages=num_stages,
        pipeline_depth=depth,
        pipeline_chunk_tokens=FEWEST,
        max_num_seqs=16,
        **options,
    )


def prompt_of(number: int, length: int) -> list[int]:
    return [(number * 7 + i) % 48 for i in range(length)]


def sizes_of(engine: Engine, length: int) -> list[int]:
    """Tokens of prompts of this length, of the steps that computed any."""
    found = [int(plan.counts[plan.starts < length].sum()) for plan in engine.plans]
    return [size for size in found if size]


def test_a_burst_of_prompts_is_cut_into_steps_that_are_alike() -> None:
    engine = make_engine()
    prompts = [prompt_of(i, 40) for i in range(8)]
    for i, prompt in enumerate(prompts):
        engine.add(str(i), prompt, max_tokens=3)
    engine.run()
    sizes = sizes_of(engine, 40)
    assert sizes[0] == 8 * 40 / (PIECES_PER_STAGE * STAGES)
    assert sum(sizes) == 8 * 40
    for one, two in itertools.pairwise(sizes[:-1]):
        # A last token of a prompt is taken besides.
        assert 0.8 * one <= two <= one + 1
    for i, prompt in enumerate(prompts):
        assert engine.outputs[str(i)] == expected(prompt, 3)


def test_pieces_are_equal_and_not_shorter_than_the_fewest() -> None:
    for length, pieces in ((15, [15]), (16, [8, 8]), (17, [9, 8]), (31, [11, 10, 10])):
        engine = make_engine()
        engine.add("a", prompt_of(0, length), max_tokens=1)
        engine.run()
        assert sorted(sizes_of(engine, length), reverse=True) == pieces


def test_one_stage_has_whole_steps() -> None:
    engine = make_engine(num_stages=1)
    engine.add("a", prompt_of(0, 60), max_tokens=1)
    engine.run()
    assert sizes_of(engine, 60) == [60]


def test_no_step_has_more_than_the_most_batched_tokens() -> None:
    engine = make_engine(max_num_batched_tokens=12)
    for i in range(12):
        engine.add(str(i), prompt_of(i, 60), max_tokens=2)
    engine.run()
    assert max(plan.num_tokens for plan in engine.plans) == 12


def test_prompts_that_have_no_slot_do_not_make_steps_longer() -> None:
    engine = make_engine(max_num_batched_tokens=64)
    for i in range(16):
        engine.add(f"first {i}", [i, 1], max_tokens=4 if i == 0 else 60)
    engine.step()
    for i in range(40):
        engine.add(f"waits {i}", prompt_of(i, 32), max_tokens=2)
    while "first 0" not in engine.reasons:
        engine.step()
    before = len(engine.plans)
    while "waits 0" not in engine.reasons:
        engine.step()
    assert [int(plan.counts.max()) for plan in engine.plans[before : before + 4]] == [FEWEST] * 4
    engine.run()


def test_prompts_are_whole_where_they_are_not_to_be_cut() -> None:
    engine = make_engine(enable_chunked_prefill=False, max_num_batched_tokens=64)
    engine.add("a", prompt_of(0, 60), max_tokens=2)
    engine.run()
    assert sizes_of(engine, 60) == [60]


def test_the_tokens_of_waiting_requests_are_counted_while_they_come_and_go() -> None:
    engine = make_engine()
    waiting = engine.scheduler.lifecycle.waiting
    for i in range(4):
        engine.add(str(i), prompt_of(i, 10 + i), max_tokens=2)
    assert waiting.num_tokens == 10 + 11 + 12 + 13
    engine.scheduler.abort("2")
    assert waiting.num_tokens == 10 + 11 + 13
    engine.run()
    assert waiting.num_tokens == 0


def test_no_more_prompts_are_cut_than_may_be() -> None:
    engine = make_engine(long_prefill_token_threshold=10)
    for i in range(16):
        engine.add(str(i), prompt_of(i, 9 if i else 40), max_tokens=2)
    engine.run()
    known: dict[int, int] = {}  # tokens of the prompt, by slot
    for plan in engine.plans:
        known |= {a.slot: len(a.token_ids) for a in plan.admissions}
        ends = zip(plan.slots.tolist(), (plan.starts + plan.counts).tolist(), strict=True)
        assert sum(end < known[slot] for slot, end in ends) <= 1
