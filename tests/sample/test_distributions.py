"""Chi-squared tests of 20,000 draws per case against tests/sample/reference.py, seeds fixed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from tests.sample import reference
from tests.sample.bench import Bench
from vllm.sampling_params import SamplingParams

NUM_DRAWS = 20_000
NUM_SLOTS = 200
V = 40
PROMPT = [3, 7, 7, 12, 20]
OUTPUT = [5, 7, 5, 5, 31, 9]
EOS = [2]

SINGLE = {
    "nothing": {},
    "temperature low": {"temperature": 0.4},
    "temperature high": {"temperature": 2.5},
    "top_k": {"top_k": 7},
    "top_k of one": {"top_k": 1},
    "top_p": {"top_p": 0.7},
    "top_p near one": {"top_p": 0.999},
    "top_p tiny": {"top_p": 1e-6},
    "min_p": {"min_p": 0.15},
    "presence_penalty": {"presence_penalty": 1.5},
    "frequency_penalty": {"frequency_penalty": 0.6},
    "negative penalties": {"frequency_penalty": -0.4, "presence_penalty": -1.0},
    "repetition_penalty": {"repetition_penalty": 1.7},
    "repetition_penalty below one": {"repetition_penalty": 0.6},
    "logit_bias": {"logit_bias": {0: 3.0, 5: -100.0, 11: 1.0}},
    "allowed_token_ids": {"allowed_token_ids": [0, 1, 5, 9, 30, 39]},
    "bad_words": {"bad_words_token_ids": [[0], [31, 9, 6], [9, 1], [5, 2], [20, 4]]},
    "min_tokens": {"min_tokens": 7, "stop_token_ids": [1, 8]},
    "min_tokens reached": {"min_tokens": 6, "stop_token_ids": [1, 8]},
    "min_tokens ignoring eos": {"min_tokens": 7, "stop_token_ids": [1], "ignore_eos": True},
}
COMBINED = {
    "truncations": {"temperature": 1.4, "top_k": 20, "top_p": 0.85, "min_p": 0.02},
    "penalties": {
        "presence_penalty": 0.3,
        "frequency_penalty": 0.3,
        "repetition_penalty": 1.3,
        "temperature": 0.8,
    },
    "constraints": {
        "allowed_token_ids": [*range(25), 31],
        "bad_words_token_ids": [[4], [9, 6]],
        "min_tokens": 9,
        "stop_token_ids": [10],
        "logit_bias": {2: 5.0, 31: 2.0},
    },
    "everything": {
        "allowed_token_ids": list(range(35)),
        "bad_words_token_ids": [[4], [31, 9, 6]],
        "min_tokens": 9,
        "stop_token_ids": [10],
        "logit_bias": {2: 5.0, 31: 2.0, 14: -1.0},
        "presence_penalty": 0.3,
        "frequency_penalty": -0.3,
        "repetition_penalty": 1.3,
        "temperature": 1.3,
        "min_p": 0.03,
        "top_k": 18,
        "top_p": 0.9,
    },
}


def draw_counts(bench: Bench, logits: np.ndarray, params: SamplingParams) -> np.ndarray:
    """How often each token is drawn by NUM_DRAWS requests that differ in their seeds."""
    slots = [bench.add(params, PROMPT, OUTPUT) for _ in range(NUM_SLOTS)]
    rows = torch.from_numpy(logits).float().repeat(NUM_SLOTS, 1)
    generator = torch.Generator().manual_seed(1)
    counts = np.zeros(V, np.int64)
    for _ in range(NUM_DRAWS // NUM_SLOTS):
        # Admitting every one of them anew would take most of the time of this test.
        bench.state.seeds.random_(-(2**31), 2**31, generator=generator)
        drawn = bench.sample(rows, slots).token_ids.numpy()
        counts += np.bincount(drawn, minlength=V)
    return counts


@pytest.mark.parametrize("name", [*SINGLE, *COMBINED])
def test_draws_follow_the_reference_distribution(name: str) -> None:
    logits = np.random.default_rng(11).normal(0.0, 1.5, V).astype(np.float32).astype(np.float64)
    params = SamplingParams(max_tokens=64, seed=0, **(SINGLE | COMBINED)[name])
    expected = reference.distribution(logits, params, PROMPT, OUTPUT, EOS)
    bench = Bench(V, num_slots=NUM_SLOTS + 1, max_tokens=12, eos_token_ids=EOS)

    counts = draw_counts(bench, logits, params)

    assert counts[expected == 0.0].sum() == 0
    assert_fits(counts, expected)


@pytest.mark.parametrize("seed", [0, 1, -1 + 2**63, -(2**63)])
def test_draws_at_successive_positions_follow_the_distribution(seed: int) -> None:
    logits = np.linspace(-2.0, 2.0, V)
    params = SamplingParams(seed=seed, temperature=0.9)
    bench = Bench(V, num_slots=2, max_tokens=64)
    slot = bench.add(params)
    rows = bench.rows([slot] * NUM_DRAWS)
    positions_np = np.arange(NUM_DRAWS, dtype=np.int32)
    rows = replace(rows, positions_np=positions_np)
    scores = torch.from_numpy(logits).float().repeat(NUM_DRAWS, 1)

    counts = np.bincount(bench.sampler.sample(scores, rows).token_ids.numpy(), minlength=V)

    assert_fits(counts, reference.distribution(logits, params))


def test_successive_draws_of_one_request_are_independent() -> None:
    bench = Bench(8, num_slots=2)
    slot = bench.add(SamplingParams(seed=5))
    positions_np = np.arange(NUM_DRAWS, dtype=np.int32)
    rows = bench.rows([slot] * NUM_DRAWS)
    rows = replace(rows, positions_np=positions_np)
    drawn = bench.sampler.sample(torch.zeros(NUM_DRAWS, 8), rows).token_ids.numpy()

    pairs = np.zeros((8, 8))
    np.add.at(pairs, (drawn[:-1], drawn[1:]), 1)

    assert stats.chi2_contingency(pairs).pvalue > 1e-3


def test_draws_of_neighbouring_seeds_are_independent() -> None:
    bench = Bench(8, num_slots=2001)
    slots = [bench.add(SamplingParams(seed=seed)) for seed in range(2000)]
    drawn = bench.sample(torch.zeros(2000, 8), slots).token_ids.numpy()

    pairs = np.zeros((8, 8))
    np.add.at(pairs, (drawn[:-1], drawn[1:]), 1)

    assert stats.chi2_contingency(pairs).pvalue > 1e-3


def assert_fits(counts: np.ndarray, expected: np.ndarray) -> None:
    """Chi-squared at 0.1 %, tokens expected fewer than five times taken together."""
    wanted = expected * counts.sum()
    common = wanted >= 5.0
    observed = np.append(counts[common], counts[~common].sum())
    wanted = np.append(wanted[common], wanted[~common].sum())
    observed, wanted = observed[wanted > 0], wanted[wanted > 0]
    if len(observed) == 1:
        return
    assert stats.chisquare(observed, wanted * observed.sum() / wanted.sum()).pvalue > 1e-3
