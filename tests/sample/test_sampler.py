from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.sample.bench import CPU, Bench
from vllm.errors import ConfigError
from vllm.messages.step import NO_TOKEN
from vllm.platforms.cpu.native import native_ops
from vllm.sample.interface import SamplerOutput
from vllm.sample.sampler import Sampler
from vllm.sampling_params import SamplingParams

V = 1003  # odd, so that rows start at every alignment
PROMPT = [3, 7, 7, 12, 20]
OUTPUT = [5, 7, 5, 5, 31, 9]

MIXED = [
    {"temperature": 0.0},
    {"seed": 1},
    {"seed": 2, "temperature": 0.7, "top_p": 0.9},
    {"seed": 3, "temperature": 5.0, "top_p": 0.999},
    {"seed": 4, "top_k": 5},
    {"seed": 5, "top_k": 900, "top_p": 0.6, "min_p": 0.01},
    {"seed": 6, "min_p": 0.1, "logprobs": 3},
    {"temperature": 0.0, "logprobs": 0, "repetition_penalty": 1.5},
    {"seed": 8, "presence_penalty": 1.0, "frequency_penalty": -0.5, "temperature": 1.3},
    {"seed": 9, "logit_bias": {4: 9.0, 1: -5.0}},
    {"seed": 10, "allowed_token_ids": [4, 800, 33]},
    {"temperature": 0.0, "allowed_token_ids": list(range(100, 260))},
    {"seed": 11, "bad_words_token_ids": [[9, 4], [7]], "min_tokens": 9, "stop_token_ids": [6]},
    {"seed": -12, "top_p": 0.4, "logprobs": 5},
]


def mixed_bench(
    slots: list[int] | None = None, overrides: Mapping[str, Callable[..., Any]] | None = None
) -> tuple[Bench, list[int], Tensor]:
    """Requests of all kinds, each with a history of its own, and logits for them."""
    bench = Bench(V, overrides=overrides or {})
    taken = []
    for i, kwargs in enumerate(MIXED * 3):
        params = SamplingParams(max_tokens=64, **kwargs)
        slot = None if slots is None else slots[i]
        taken.append(bench.add(params, PROMPT + [i] * (i % 4), OUTPUT + [i] * (i % 7), slot))
    logits = torch.randn(len(taken), V, generator=torch.Generator().manual_seed(3)) * 3
    return bench, taken, logits


@pytest.mark.parametrize("ops", ["reference", "native"])
@pytest.mark.parametrize("num_threads", [1, 2])
def test_a_row_alone_gives_exactly_what_it_gives_among_others(num_threads: int, ops: str) -> None:
    overrides = native_ops() if ops == "native" else {}
    if ops == "native" and not overrides:
        pytest.skip("the native kernels are not built")
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        bench, slots, logits = mixed_bench(overrides=overrides)
        together = bench.sample(logits, slots)
        for i, slot in enumerate(slots):
            alone = bench.sample(logits[i : i + 1], [slot])
            assert alone.token_ids[0] == together.token_ids[i], MIXED[i % len(MIXED)]
            assert_same_logprobs(alone, together, i)
    finally:
        torch.set_num_threads(before)


def assert_same_logprobs(alone: SamplerOutput, together: SamplerOutput, row: int) -> None:
    assert together.logprobs is not None
    if alone.logprobs is None:
        return
    width = alone.logprobs.logprobs.shape[1]
    assert torch.equal(alone.logprobs.logprobs[0], together.logprobs.logprobs[row, :width])
    assert torch.equal(alone.logprobs.token_ids[0], together.logprobs.token_ids[row, :width])
    assert alone.logprobs.ranks[0] == together.logprobs.ranks[row]


def test_the_order_of_rows_does_not_matter() -> None:
    bench, slots, logits = mixed_bench()
    forwards = bench.sample(logits, slots).token_ids
    order = torch.randperm(len(slots), generator=torch.Generator().manual_seed(1))

    shuffled = bench.sample(logits[order], [slots[i] for i in order.tolist()]).token_ids

    assert torch.equal(shuffled, forwards[order])


def test_another_slot_draws_the_same_as_after_a_preemption() -> None:
    bench, slots, logits = mixed_bench()
    moved_bench, moved, _ = mixed_bench([63 - slot for slot in slots])

    assert torch.equal(
        bench.sample(logits, slots).token_ids, moved_bench.sample(logits, moved).token_ids
    )


def test_the_same_seed_draws_the_same_and_another_does_not() -> None:
    bench = Bench(V, num_slots=4)
    slots = [bench.add(SamplingParams(seed=seed)) for seed in (2**40 + 5, 2**40 + 5, 5)]
    drawn = []
    for position in range(3, 23):
        bench.positions_np[:] = position
        drawn.append(bench.sample(torch.zeros(3, V), slots).token_ids)
    first, same, other = torch.stack(drawn, dim=1)

    assert torch.equal(first, same)
    assert (first != other).sum() > 15


def test_a_released_slot_leaves_nothing_to_the_next_request() -> None:
    bench, slots, logits = mixed_bench()
    params = SamplingParams(seed=77, temperature=0.9)
    for slot in slots:
        bench.state.release(slot)
        bench.add(params, PROMPT, OUTPUT, slot)
    fresh = Bench(V)
    fresh_slots = [fresh.add(params, PROMPT, OUTPUT) for _ in slots]

    output = bench.sample(logits, slots)

    assert torch.equal(output.token_ids, fresh.sample(logits, fresh_slots).token_ids)
    assert output.logprobs is None


def test_a_request_takes_an_unreleased_slot_whole() -> None:
    bench = Bench(V, num_slots=3)
    slot = bench.add(SamplingParams(temperature=0.0, logprobs=4, allowed_token_ids=[9]))
    bench.add(SamplingParams(temperature=0.0), slot=slot)
    logits = torch.arange(V).float().unsqueeze(0)

    output = bench.sample(logits, [slot])

    assert (output.token_ids.tolist(), output.logprobs) == ([V - 1], None)


def test_rows_of_the_dummy_slot_are_sampled_without_complaint() -> None:
    bench = Bench(V)
    slot = bench.add(SamplingParams(seed=1, top_p=0.5))
    logits = torch.randn(3, V)

    tokens = bench.sample(logits, [0, slot, 0]).token_ids

    assert tokens[0] == logits[0].argmax() and tokens[2] == logits[2].argmax()


def test_greedy_rows_upload_nothing() -> None:
    bench = Bench(V)
    slots = [bench.add(SamplingParams(temperature=0.0)) for _ in range(3)]
    uploads: list[object] = []
    logits = torch.randn(3, V)

    tokens = bench.sampler.sample(logits, replace(bench.rows(slots), upload=uploads.append))

    assert torch.equal(tokens.token_ids, logits.argmax(-1).int())
    assert not uploads


def test_logprobs_of_every_row_leave_the_logits_of_a_draw_alone() -> None:
    bench = Bench(V)
    slots = [bench.add(SamplingParams(seed=i, logprobs=2, temperature=0.5)) for i in range(3)]
    logits = torch.randn(3, V)
    output = bench.sample(logits, slots)
    assert output.logprobs is not None
    expected = logits.log_softmax(-1)
    torch.testing.assert_close(output.logprobs.logprobs[:, 1:], expected.topk(2).values)


def test_no_rows_give_no_tokens() -> None:
    output = Bench(V).sample(torch.zeros(0, V), [])

    assert output.token_ids.shape == (0,) and output.token_ids.dtype == torch.int32


@pytest.mark.parametrize("temperature", [0.0, 1e-6, 9e-6])
def test_a_tiny_temperature_takes_the_most_likely_token(temperature: float) -> None:
    bench = Bench(V)
    slot = bench.add(SamplingParams(temperature=temperature, top_k=50, top_p=0.3))
    logits = torch.randn(1, V)

    assert bench.sample(logits, [slot]).token_ids[0] == logits.argmax()


def test_a_small_temperature_draws_without_overflow() -> None:
    bench = Bench(V)
    slot = bench.add(SamplingParams(temperature=2e-5, seed=3))
    logits = torch.randn(1, V) * 100

    assert bench.sample(logits, [slot]).token_ids[0] == logits.argmax()


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("everywhere", [True, False])
def test_a_poisoned_row_gives_no_wrong_token_and_spares_the_others(
    poison: float, everywhere: bool
) -> None:
    bench, slots, logits = mixed_bench()
    clean = bench.sample(logits, slots)
    for victim in range(len(MIXED)):
        poisoned = logits.clone()
        poisoned[victim, slice(None) if everywhere else 17] = poison
        output = bench.sample(poisoned, slots)

        assert NO_TOKEN <= output.token_ids[victim] < V
        if everywhere and poison != math.inf:
            assert output.token_ids[victim] == NO_TOKEN
        spared = torch.arange(len(slots)) != victim
        assert torch.equal(output.token_ids[spared], clean.token_ids[spared])
        assert output.logprobs is not None and clean.logprobs is not None
        assert not output.logprobs.logprobs.isnan().any()
        assert torch.equal(output.logprobs.logprobs[spared], clean.logprobs.logprobs[spared])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_where_bans_collide_an_allowed_token_is_still_drawn(temperature: float) -> None:
    bench = Bench(V, eos_token_ids=[8])
    params = SamplingParams(
        seed=1,
        temperature=temperature,
        allowed_token_ids=[5, 8],
        bad_words_token_ids=[[9, 5]],
        min_tokens=16,
    )
    slots = [bench.add(params, PROMPT, OUTPUT)]

    assert bench.sample(torch.randn(1, V), slots).token_ids[0] in (5, 8)


def test_custom_processors_see_the_tokens_and_run_in_order() -> None:
    calls = []

    def with_prompt(prompt: list[int], output: list[int], logits: Tensor) -> Tensor:
        calls.append((prompt, output))
        logits[4] = 1e4
        return logits

    def without_prompt(output: list[int], logits: Tensor, strength: float = 1.0) -> Tensor:
        calls.append((output, float(logits[4])))
        return torch.roll(logits, 1)

    bench = Bench(V)
    params = SamplingParams(temperature=0.0, logits_processors=[with_prompt, without_prompt])
    plain = bench.add(SamplingParams(temperature=0.0))
    slot = bench.add(params, PROMPT, OUTPUT)
    logits = torch.randn(2, V)

    tokens = bench.sample(logits, [plain, slot]).token_ids

    assert tokens.tolist() == [int(logits[0].argmax()), 5]
    assert calls == [(PROMPT, OUTPUT), (OUTPUT, 1e4)]


@pytest.mark.parametrize("result", [None, torch.zeros(3)])
def test_a_processor_that_returns_nonsense_is_named(result: Tensor | None) -> None:
    bench = Bench(V)
    params = SamplingParams(temperature=0.0, logits_processors=[lambda ids, logits: result])
    slot = bench.add(params)

    bench.sample(torch.randn(1, V), [slot])
    assert "must return a tensor of shape" in bench.state.take_failures()[slot]


def test_logprobs_are_those_of_the_model_whatever_the_stages_do() -> None:
    bench, slots, logits = mixed_bench()
    expected = torch.log_softmax(logits.double(), dim=-1)
    output = bench.sample(logits, slots)
    assert output.logprobs is not None

    for i in range(len(slots)):
        k = MIXED[i % len(MIXED)].get("logprobs")
        if k is None:
            continue
        token = int(output.token_ids[i])
        top_ids = output.logprobs.token_ids[i, 1 : 1 + k]
        assert output.logprobs.token_ids[i, 0] == token
        assert output.logprobs.logprobs[i, 0] == pytest.approx(float(expected[i, token]), abs=1e-5)
        assert top_ids.tolist() == expected[i].topk(k).indices.tolist()
        values = output.logprobs.logprobs[i, 1 : 1 + k].double()
        torch.testing.assert_close(values, expected[i].topk(k).values, atol=1e-5, rtol=0)
        assert output.logprobs.ranks[i] == 1 + (expected[i] > expected[i, token]).sum()


def test_logprobs_of_minus_one_are_the_whole_vocabulary() -> None:
    bench = Bench(V)
    slot = bench.add(SamplingParams(seed=1, logprobs=-1))
    logits = torch.randn(1, V)

    logprobs = bench.sample(logits, [slot]).logprobs

    assert logprobs is not None and logprobs.token_ids.shape == (1, 1 + V)
    assert sorted(logprobs.token_ids[0, 1:].tolist()) == list(range(V))


@pytest.mark.parametrize("mode", ["raw_logits", "processed_logprobs", "processed_logits"])
def test_logprobs_mode_chooses_what_is_reported(mode: str) -> None:
    bench = Bench(V, logprobs_mode=mode)
    params = SamplingParams(seed=1, temperature=0.5, logprobs=4, top_k=4, logit_bias={6: 50.0})
    slot = bench.add(params)
    logits = torch.randn(1, V)
    expected = logits[0].clone()
    if mode.startswith("processed"):
        expected[6] += 50.0
        expected /= 0.5
    if mode.endswith("logprobs"):
        kept = expected.topk(4)
        expected = torch.full((V,), -math.inf).scatter(0, kept.indices, kept.values)
        expected = expected.log_softmax(dim=-1)

    logprobs = bench.sample(logits, [slot]).logprobs

    assert logprobs is not None
    torch.testing.assert_close(logprobs.logprobs[0, 1:], expected.topk(4).values)


def test_prompt_logprobs_explain_the_tokens_that_followed() -> None:
    bench = Bench(V)
    logits = torch.randn(6, V)
    followed = torch.tensor([0, V - 1, 5, 6, 7, 8], dtype=torch.int32)
    expected = torch.log_softmax(logits, dim=-1)

    given = bench.sampler.prompt_logprobs(logits, followed, 3)

    chosen = expected.gather(1, followed.long().unsqueeze(1))
    assert torch.equal(given.token_ids[:, 0], followed)
    torch.testing.assert_close(given.logprobs[:, :1], chosen)
    torch.testing.assert_close(given.logprobs[:, 1:], expected.topk(3).values)
    assert torch.equal(given.ranks, ((expected > chosen).sum(1) + 1).int())
    assert bench.sampler.prompt_logprobs(logits, followed, -1).logprobs.shape == (6, 1 + V)
    assert bench.sampler.prompt_logprobs(logits[:0], followed[:0], 2).logprobs.shape == (0, 3)


def test_an_unknown_logprobs_mode_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"--logprobs-mode .* got 'cooked'"):
        Sampler(Bench(4).state.ops, 4, CPU, "cooked")
