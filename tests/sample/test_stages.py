from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.sample import reference
from tests.sample.bench import Bench
from vllm.sample.stages.bad_words import BadWords
from vllm.sample.stages.min_p import MinP
from vllm.sample.stages.penalties import Penalties
from vllm.sample.stages.top_k_top_p import TopKTopP
from vllm.sampling_params import SamplingParams

V = 30
# Quarters: sums and differences are exact, and there are ties.
LOGITS = st.lists(st.integers(-24, 24).map(lambda x: x / 4), min_size=V, max_size=V)
# Neither exactly at a ratio of two probabilities nor at a sum of a few.
SHARE = st.floats(0.001, 0.999)


def kept_by(stage: TopKTopP | MinP, logits: list[float], **kwargs: float) -> np.ndarray:
    bench = Bench(len(logits), num_slots=2)
    slot = bench.add(SamplingParams(seed=0, **kwargs))
    out = stage.apply(torch.tensor([logits]), bench.rows([slot]))
    kept = ~out[0].isinf()
    assert torch.equal(out[0][kept], torch.tensor(logits)[kept])
    return kept.numpy()


@given(logits=LOGITS, top_k=st.integers(1, V + 2))
@settings(deadline=None, max_examples=60)
def test_top_k_keeps_k_tokens_and_the_equals_of_the_last(logits: list[float], top_k: int) -> None:
    bound = sorted(logits, reverse=True)[min(top_k, V) - 1]

    kept = kept_by(TopKTopP(), logits, top_k=top_k)

    assert kept.tolist() == [x >= bound for x in logits]


@given(logits=LOGITS, top_p=SHARE, top_k=st.integers(0, V))
@settings(deadline=None, max_examples=100)
def test_top_p_keeps_the_fewest_tokens_that_reach_it(
    logits: list[float], top_p: float, top_k: int
) -> None:
    kept = kept_by(TopKTopP(), logits, top_p=top_p, top_k=top_k)
    values = np.array(logits)
    candidates = np.sort(values)[::-1][: top_k or V]
    weights = np.exp(candidates) / np.exp(candidates).sum()
    least = values[kept].min()

    assert kept.any() and values[~kept].max(initial=-math.inf) < least
    assert weights[candidates >= least].sum() >= top_p - 1e-5
    # Without its least likely tokens (all but one of them, where several are equal) too little is
    # left.
    enough_without = weights[candidates > least].sum()
    assert enough_without < top_p + 1e-5


@given(logits=LOGITS, min_p=SHARE)
@settings(deadline=None, max_examples=60)
def test_min_p_keeps_what_is_likely_enough(logits: list[float], min_p: float) -> None:
    ratios = np.exp(np.array(logits) - max(logits))

    kept = kept_by(MinP(), logits, min_p=min_p)

    clear = np.abs(ratios - min_p) > 1e-5
    assert (kept == (ratios >= min_p))[clear].all()


@given(seed=st.integers(0, 10_000), scale=st.sampled_from([0.01, 0.5, 3.0]))
@settings(deadline=None, max_examples=40)
def test_what_is_kept_of_a_row_does_not_depend_on_the_others(seed: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(6, 500, generator=generator) * scale
    bench = Bench(500)
    kwargs = [
        {"top_p": 0.9},
        {"top_p": 0.2},
        {"top_p": 0.999},
        {"top_k": 40, "top_p": 0.8},
        {"top_k": 3},
        {"top_k": 300, "top_p": 0.99},
    ]
    slots = [bench.add(SamplingParams(seed=0, **kw)) for kw in kwargs]
    together = TopKTopP().apply(logits.clone(), bench.rows(slots))
    for i in range(6):
        alone = TopKTopP().apply(logits[i : i + 1].clone(), bench.rows(slots[i : i + 1]))
        assert torch.equal(together[i : i + 1], alone)


def random_history(rng: random.Random) -> tuple[list[int], list[int]]:
    prompt = [rng.randrange(V) for _ in range(rng.randint(1, 20))]
    return prompt, [rng.randrange(V) for _ in range(rng.randint(0, 30))]


def test_penalties_match_counting_in_a_loop() -> None:
    rng = random.Random(4)
    bench = Bench(V)
    logits = torch.randn(40, V, generator=torch.Generator().manual_seed(2)) * 4
    slots, expected = [], []
    for i in range(40):
        params = SamplingParams(
            temperature=0.0,
            presence_penalty=rng.uniform(-2, 2),
            frequency_penalty=rng.uniform(-2, 2),
            repetition_penalty=rng.uniform(0.3, 2.5),
        )
        prompt, output = random_history(rng)
        slots.append(bench.add(params, prompt, output))
        expected.append(reference.penalized(logits[i].double().numpy(), params, prompt, output))

    actual = Penalties().apply(logits.clone(), bench.rows(slots))

    np.testing.assert_allclose(actual.numpy(), np.stack(expected), atol=1e-4)


def test_penalties_count_tokens_that_only_the_device_knows() -> None:
    """At depth 2 the row of the next step is planned before the last token has come back."""
    bench = Bench(V)
    slot = bench.add(SamplingParams(temperature=0.0, presence_penalty=2.0), [1, 2], [3])
    bench.tokens[slot, 3] = 7
    bench.positions_np[slot] = 4

    out = Penalties().apply(torch.zeros(1, V), bench.rows([slot]))

    assert out[0].nonzero().flatten().tolist() == [3, 7]


def banned_by(words: list[list[int]], prompt: list[int], output: list[int]) -> Tensor:
    bench = Bench(V)
    other = bench.add(SamplingParams(temperature=0.0, bad_words_token_ids=[[1, 2, 3, 4, 5]] * 3))
    params = SamplingParams(temperature=0.0, bad_words_token_ids=words)
    slot = bench.add(params, prompt, output)
    out = BadWords().apply(torch.zeros(2, V), bench.rows([other, slot]))
    assert (out[0] == 0).all()
    return (out[1] < -1e20).nonzero().flatten()


@pytest.mark.parametrize(
    ("words", "prompt", "output", "banned"),
    [
        ([[4]], [1], [], [4]),
        ([[0]], [1], [2], [0]),
        ([[4, 5]], [1], [4], [5]),
        ([[4, 5]], [1], [4, 6], []),
        ([[4, 5]], [1, 4], [], []),  # a word that begins in the prompt is not the output's
        ([[4, 4, 5]], [4], [4], []),
        ([[4, 4, 5], [4, 6], [5, 7], [8]], [1], [2, 4, 4], [5, 6, 8]),
        ([[4, 5], [9, 5]], [1], [4], [5]),
        ([list(range(10))], [1], list(range(9)), [9]),
    ],
)
def test_bad_words_forbid_the_token_that_would_complete_them(
    words: list[list[int]], prompt: list[int], output: list[int], banned: list[int]
) -> None:
    assert banned_by(words, prompt, output).tolist() == banned


def test_bad_words_match_a_loop_for_random_histories() -> None:
    rng = random.Random(9)
    for _ in range(50):
        prompt, output = [rng.randrange(3)], [rng.randrange(3) for _ in range(rng.randint(0, 8))]
        words = [[rng.randrange(3) for _ in range(rng.randint(1, 4))] for _ in range(5)]
        params = SamplingParams(bad_words_token_ids=words)

        expected = sorted(reference.forbidden(params, output, ()))

        assert banned_by(words, prompt, output).tolist() == expected


def test_an_end_token_that_the_model_cannot_draw_is_no_obstacle() -> None:
    bench = Bench(V, eos_token_ids=[3, V + 7])
    slot = bench.add(SamplingParams(temperature=0.0, min_tokens=4))
    logits = torch.zeros(1, V)
    logits[0, 3] = 9.0

    assert bench.sample(logits, [slot]).token_ids.tolist() == [0]


def test_lists_of_slots_survive_the_growth_of_their_tensors() -> None:
    bench = Bench(V)
    few = bench.add(SamplingParams(temperature=0.0, allowed_token_ids=[3, 4], logit_bias={3: -9.0}))
    many = SamplingParams(
        temperature=0.0,
        allowed_token_ids=list(range(29)),
        logit_bias=dict.fromkeys(range(20), 0.5),
    )
    slots = [few, bench.add(many)]

    tokens = bench.sample(torch.zeros(2, V), slots).token_ids

    assert tokens.tolist() == [4, 0]
