"""Masks of grammars reach their own rows, and nothing raises what they forbid."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.sample.bench import Bench
from vllm.sampling_params import SamplingParams, StructuredOutputsParams

V = 40
FORM = StructuredOutputsParams(regex="a")


def mask_of(*allowed: int) -> np.ndarray:
    bits = np.zeros(64, np.uint8)
    bits[list(allowed)] = 1
    return np.packbits(bits, bitorder="little").view(np.int32)


def bench_with_masks(*masks: np.ndarray) -> Bench:
    bench = Bench(V, num_slots=8)
    bench.masks = np.stack(masks)
    return bench


def test_each_row_draws_from_its_own_mask_and_rows_without_one_from_everything() -> None:
    bench = bench_with_masks(mask_of(3, 33), mask_of(39))
    slots = [
        bench.add(SamplingParams(temperature=0, structured_outputs=FORM)),
        bench.add(SamplingParams(temperature=0)),
        bench.add(SamplingParams(temperature=0, structured_outputs=FORM)),
        bench.add(SamplingParams(temperature=0, structured_outputs=FORM)),  # before its form begins
    ]
    bench.masks_np[slots[0]], bench.masks_np[slots[2]] = 0, 1
    logits = torch.zeros(4, V)
    logits[:, 7], logits[:, 33] = 5.0, 1.0
    assert bench.sample(logits, slots).token_ids.tolist() == [33, 7, 39, 7]


@pytest.mark.parametrize(
    "changes",
    [
        {"logit_bias": {7: 100.0}},
        {"bad_words_token_ids": [[3]]},
        {"min_tokens": 5, "stop_token_ids": [3]},
        {"repetition_penalty": 2.0, "presence_penalty": 2.0},
        {"top_k": 2},
        {"top_p": 0.01},
        {"min_p": 1.0},
        {"temperature": 50.0},
        {"logits_processors": [lambda _, logits: logits.index_fill(0, torch.tensor([7]), 99.0)]},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_the_one_token_that_is_allowed_is_drawn_whatever_else_is_asked(changes) -> None:
    bench = bench_with_masks(mask_of(3))
    params = SamplingParams(seed=1, structured_outputs=FORM, **{"temperature": 1.0, **changes})
    slot = bench.add(params, prompt=(3, 3, 7))
    bench.masks_np[slot] = 0
    logits = torch.randn(1, V, generator=torch.Generator().manual_seed(0))
    assert bench.sample(logits, [slot]).token_ids.tolist() == [3]


def test_raw_log_probabilities_are_those_before_the_mask() -> None:
    bench = bench_with_masks(mask_of(3))
    slot = bench.add(SamplingParams(temperature=0, logprobs=1, structured_outputs=FORM))
    bench.masks_np[slot] = 0
    drawn = bench.sample(torch.zeros(1, V), [slot])
    assert drawn.token_ids.tolist() == [3]
    assert drawn.logprobs is not None
    assert float(drawn.logprobs.logprobs[0, 0]) == pytest.approx(-np.log(V))
