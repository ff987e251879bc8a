"""Prompts of drawn tokens: exact lengths, and nothing shared that should not be."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vllm.benchmarks.datasets.options import DatasetOptions
from vllm.benchmarks.datasets.sample import Sample
from vllm.errors import ConfigError


def random_samples(
    options: DatasetOptions, vocabulary: Sequence[int], rng: np.random.Generator
) -> list[Sample]:
    count, ratio = options.num_prompts, options.random_range_ratio
    prefix = _draw(rng, vocabulary, options.random_prefix_len)
    num_input = lengths(rng, options.random_input_len, ratio, count)
    num_output = lengths(rng, options.random_output_len, ratio, count)
    return [
        Sample(prefix + _draw(rng, vocabulary, size), len(prefix) + size, max_tokens)
        for size, max_tokens in zip(num_input, num_output, strict=True)
    ]


def prefix_repetition_samples(
    options: DatasetOptions, vocabulary: Sequence[int], rng: np.random.Generator
) -> list[Sample]:
    """Prompt i begins with prefix i modulo their number, then all are shuffled."""
    num_prefixes = options.prefix_repetition_num_prefixes
    if num_prefixes > options.num_prompts:
        raise ConfigError(
            f"--prefix-repetition-num-prefixes {num_prefixes}: more than --num-prompts "
            f"{options.num_prompts}. Lower the one or raise the other."
        )
    prefixes = [
        _draw(rng, vocabulary, options.prefix_repetition_prefix_len) for _ in range(num_prefixes)
    ]
    length = options.prefix_repetition_prefix_len + options.prefix_repetition_suffix_len
    samples = [
        Sample(
            prefixes[i % num_prefixes]
            + _draw(rng, vocabulary, options.prefix_repetition_suffix_len),
            length,
            options.prefix_repetition_output_len,
        )
        for i in range(options.num_prompts)
    ]
    return [samples[i] for i in rng.permutation(len(samples))]


def lengths(rng: np.random.Generator, mean: int, ratio: float, count: int) -> list[int]:
    """Whole numbers, each within `ratio` of the mean equally likely; at least 1."""
    low = max(1, int(np.floor(mean * (1 - ratio))))
    high = int(np.ceil(mean * (1 + ratio)))
    return [int(value) for value in rng.integers(low, high + 1, size=count)]


def _draw(rng: np.random.Generator, vocabulary: Sequence[int], count: int) -> list[int]:
    return [int(token) for token in rng.choice(np.asarray(vocabulary), size=count)]
