"""Sampling with static shapes draws exactly what sampling row by row does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.sample.bench import Bench
from vllm.messages.step import NO_TOKEN
from vllm.sampling_params import SamplingParams, StructuredOutputsParams

V = 300
KINDS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "draw": {"temperature": 1.0},
    "hot": {"temperature": 1.7},
    "top_k": {"temperature": 0.8, "top_k": 7},
    "top_p": {"temperature": 0.9, "top_p": 0.6},
    "both": {"temperature": 1.2, "top_k": 40, "top_p": 0.9},
    "min_p": {"temperature": 1.0, "min_p": 0.05},
    "allowed": {"temperature": 1.0, "allowed_token_ids": [3, 7, 8]},
    "bias": {"temperature": 0.7, "logit_bias": {4: 5.0, 9: -100.0}},
    "penalties": {"temperature": 0.0, "repetition_penalty": 1.5, "frequency_penalty": 0.3},
    "presence": {"temperature": 1.0, "presence_penalty": 1.9},
    "min_tokens": {"temperature": 0.0, "min_tokens": 5, "stop_token_ids": [2, 200]},
    "logprobs": {"temperature": 1.0, "logprobs": 3},
    "logprobs0": {"temperature": 0.0, "logprobs": 0},
    "processor": {"temperature": 0.0, "logits_processors": [lambda ids, row: row.roll(1)]},
}


def benches(seed: int, names: list[str]) -> tuple[Bench, Bench, list[int]]:
    rng = np.random.default_rng(seed)
    pair = (Bench(V), Bench(V, static_shapes=True))
    slots: list[int] = []
    for name in names:
        prompt = rng.integers(0, V, rng.integers(1, 9)).tolist()
        output = rng.integers(0, V, rng.integers(0, 9)).tolist()
        kind = {**KINDS[name], "seed": int(rng.integers(1 << 40)), "max_tokens": 64}
        for bench in pair:
            slot = bench.add(SamplingParams(**kind), prompt, output)
        slots.append(slot)
    return *pair, slots


@pytest.mark.parametrize("seed", range(12))
def test_any_mixture_of_requests_draws_the_same(seed: int) -> None:
    rng = np.random.default_rng(100 + seed)
    names = list(rng.permutation([*KINDS, *KINDS]))[: int(rng.integers(1, 25))]
    exact, static, slots = benches(seed, names)
    logits = torch.from_numpy(rng.normal(0, 3, (len(slots), V)).astype(np.float32))
    expected, given = exact.sample(logits, slots), static.sample(logits, slots)
    assert given.token_ids.tolist() == expected.token_ids.tolist()
    asked = [i for i, name in enumerate(names) if name.startswith("logprobs")]
    if asked:
        assert expected.logprobs is not None and given.logprobs is not None
        for ours, theirs in zip(given.logprobs, expected.logprobs, strict=True):
            width = theirs.shape[1] if theirs.dim() == 2 else None
            torch.testing.assert_close(ours[asked][..., :width], theirs[asked])


def test_a_row_without_a_token_to_draw_fails_alone() -> None:
    _, static, slots = benches(0, ["draw", "both", "greedy"])
    logits = torch.randn(3, V)
    logits[1] = torch.nan
    drawn = static.sample(logits, slots).token_ids.tolist()
    assert drawn[1] == NO_TOKEN and NO_TOKEN not in (drawn[0], drawn[2])


def test_a_grammar_that_does_not_restrict_yet_needs_no_mask() -> None:
    exact, static = Bench(V), Bench(V, static_shapes=True)
    params = SamplingParams(temperature=0.0, structured_outputs=StructuredOutputsParams(regex="a+"))
    slots = [
        [bench.add(params), bench.add(SamplingParams(temperature=0.0))] for bench in (exact, static)
    ]
    logits = torch.randn(2, V)
    given, expected = static.sample(logits, slots[1]), exact.sample(logits, slots[0])
    assert given.token_ids.tolist() == expected.token_ids.tolist()


class _Shapes(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, tuple[int, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.seen.append((str(func), tuple(out.shape)))
        return out


def shapes_of(names: list[str], seed: int) -> list[tuple[str, tuple[int, ...]]]:
    _, static, slots = benches(seed, names)
    rows = static.rows(slots)
    with _Shapes() as mode:
        static.sampler.sample(torch.randn(len(slots), V), rows)
    return mode.seen


def test_shapes_do_not_depend_on_which_row_wants_what() -> None:
    first = shapes_of(["greedy", "draw", "top_k", "min_p"], 1)
    assert first == shapes_of(["top_p", "greedy", "hot", "greedy"], 2)
    assert first == shapes_of(["both", "both", "both", "both"], 3)
    assert first != shapes_of(["greedy", "greedy", "draw", "hot"], 4)
