"""Noise from (seed, position, token): its distribution, and the same bits everywhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from vllm.ops.sampling import exponential_noise as noise
from vllm.ops.sampling import noise_uniforms


def random_rows(num_rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(num_rows)
    seeds = torch.randint(-(2**31), 2**31, (num_rows, 2), generator=generator).int()
    return seeds, torch.randint(0, 100_000, (num_rows,), generator=generator).int()


def test_hash_agrees_with_a_scalar_restatement_of_it():
    def mix(x: int) -> int:
        for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
            x = (x ^ x >> shift) * factor % 2**32
        return x ^ x >> 16

    low, high, position, token = 0x89ABCDEF, 0x01234567, 77, 50_000
    key = mix(mix((mix(low ^ 0x9E3779B9) + high) % 2**32) ^ position)
    other = mix(mix((mix(position ^ 0x6A09E667) + low) % 2**32) ^ high)
    bits = mix(mix((token + key) % 2**32) ^ other)
    seeds = torch.from_numpy(np.array([[low, high]], np.uint32).view(np.int32))
    uniform = noise_uniforms(seeds, torch.tensor([position]), token + 1)[0, token]
    assert float(uniform) == pytest.approx((bits + 0.5) / 2**32, rel=2**-23)


@pytest.mark.parametrize("axis", ["tokens", "positions", "seeds"])
def test_variates_are_uniform_and_uncorrelated_along(axis):
    count = 200_000
    counter = torch.arange(count, dtype=torch.int32)
    zero = torch.zeros_like(counter)
    if axis == "tokens":
        u = noise_uniforms(torch.tensor([[1, 0]]), torch.tensor([0]), count)[0]
    elif axis == "positions":
        u = noise_uniforms(torch.stack((zero + 1, zero), 1), counter, 1)[:, 0]
    else:
        u = noise_uniforms(torch.stack((counter, zero), 1), zero, 1)[:, 0]
    values = u.double().numpy()
    observed = np.bincount((values * 1000).astype(int), minlength=1000)
    assert stats.chisquare(observed).pvalue > 1e-4
    pairs = np.bincount((values[:-1] * 30).astype(int) * 30 + (values[1:] * 30).astype(int))
    assert stats.chisquare(pairs).pvalue > 1e-4
    low_bits = np.bincount((values * 2**20).astype(int) % 256, minlength=256)
    assert stats.chisquare(low_bits).pvalue > 1e-4
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.01


def test_races_of_noise_draw_with_the_given_probabilities():
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
    count = 100_000
    positions = torch.arange(count, dtype=torch.int32)
    seeds = torch.tensor([[42, 0]], dtype=torch.int32).expand(count, 2)
    drawn = (probabilities / noise(seeds, positions, 4)).argmax(-1)
    observed = torch.bincount(drawn, minlength=4).numpy()
    assert stats.chisquare(observed, probabilities.numpy() * count).pvalue > 1e-4


def test_rare_tokens_of_a_large_vocabulary_are_drawn_evenly():
    vocab_size, count = 20_000, 2_000
    seeds, positions = random_rows(count)
    winners = torch.cat(
        [
            noise(s, p, vocab_size).argmin(-1)
            for s, p in zip(seeds.split(500), positions.split(500), strict=True)
        ]
    )
    observed = torch.bincount(winners // 1000, minlength=20).numpy()
    assert stats.chisquare(observed).pvalue > 1e-4


def test_values_are_positive_and_finite():
    seeds, positions = random_rows(64)
    values = noise(seeds, positions, 50_000)
    assert values.dtype == torch.float32
    assert values.min() > 0 and values.isfinite().all()
    assert values.mean().item() == pytest.approx(1, abs=0.005)


def test_a_row_does_not_depend_on_its_batch():
    seeds, positions = random_rows(7)
    together = noise(seeds, positions, 100)
    for i in range(7):
        assert torch.equal(together[i : i + 1], noise(seeds[i : i + 1], positions[i : i + 1], 100))
