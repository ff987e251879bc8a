"""The greatest, draws and log-probabilities: native kernels give the reference's very tokens."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from tests.ops.overrides import overrides_of
from vllm.ops import REFERENCES
from vllm.ops.sampling import DrawTables, exponential_noise, nucleus_weights

NO_TOKEN = -1
KINDS = [
    {},
    {"temperature": 0.6},
    {"top_k": 1},
    {"top_k": 7, "temperature": 1.3},
    {"top_k": 100, "top_p": 0.7},
    {"top_k": 2000, "top_p": 0.99},
    {"top_p": 0.3},
    {"top_p": 0.95, "temperature": 2.0},
    {"top_p": 0.9999},
    {"min_p": 0.05},
    {"min_p": 0.01, "top_k": 30},
    {"min_p": 0.001, "top_p": 0.8, "temperature": 0.9},
    {"min_p": 0.02, "top_k": 9, "top_p": 0.5},
]


def tables_of(kinds: list[dict[str, float]], vocab_size: int) -> DrawTables:
    """Slot i has kinds[i]. Columns are strided, as those of the slot table are."""
    generator = torch.Generator().manual_seed(len(kinds))
    seeds = torch.randint(-(2**31), 2**31, (len(kinds), 4), generator=generator).int()
    integers, reals = torch.zeros(len(kinds), 3).int(), torch.zeros(len(kinds), 5)
    for i, kind in enumerate(kinds):
        integers[i, 1] = min(int(kind.get("top_k", vocab_size)), vocab_size)
        log_min_p = math.log(kind["min_p"]) if "min_p" in kind else -math.inf
        values = (kind.get("temperature", 1.0), log_min_p, kind.get("top_p", 1.0))
        reals[i, 1:4] = torch.tensor(values)
    return DrawTables(reals[:, 1], reals[:, 2], integers[:, 1], reals[:, 3], seeds[:, 2:])


def logits_of(kind: str, num_rows: int, vocab_size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(vocab_size * 7 + num_rows)
    normal = torch.randn(num_rows, vocab_size, generator=generator)
    if kind == "flat":
        return normal * 0.01
    if kind == "peaked":
        return normal * 9 - 40
    if kind == "ties":
        return (normal * 3).round() / 2
    if kind == "mostly forbidden":
        return torch.where(normal > 1.5, normal, -math.inf)
    return normal * 2.5 + 1000


@pytest.fixture(params=[1, 2], ids="threads={}".format)
def num_threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


LOGITS = ["usual", "flat", "peaked", "ties", "mostly forbidden"]


@pytest.mark.parametrize("logits_kind", LOGITS)
@pytest.mark.parametrize("vocab_size", [1, 17, 64, 130, 2500, 40_003])
@pytest.mark.parametrize("override", overrides_of("choose"), ids=str)
def test_choose_gives_the_tokens_of_the_reference(override, vocab_size, logits_kind, num_threads):
    if vocab_size > 10_000 and num_threads == 1:
        pytest.skip("the same work as with several threads, in one piece")
    tables = tables_of(KINDS, vocab_size)
    repeats = 1 if vocab_size > 10_000 else 4
    slots = torch.arange(len(KINDS), dtype=torch.int32).repeat(repeats)
    positions = torch.arange(len(slots), dtype=torch.int32) * 37
    logits = logits_of(logits_kind, len(slots), vocab_size)
    draws = torch.ones(len(slots), dtype=torch.bool)
    draws[5] = False
    expected = REFERENCES["choose"](logits, draws, slots, positions, tables)
    before = logits.clone()

    together = override(logits, draws, slots, positions, tables)

    assert torch.equal(together, expected)
    assert torch.equal(logits, before)
    for i in range(len(KINDS)):  # fewer rows than threads: each is divided
        one = slice(i, i + 1)
        alone = override(logits[one], draws[one], slots[one], positions[one], tables)
        assert torch.equal(alone, expected[one]), KINDS[i]


@pytest.mark.parametrize("override", overrides_of("choose"), ids=str)
def test_photo_finishes_end_as_in_the_reference(override):
    """Two tokens whose scores differ by no more than rounding, if at all."""
    num_rows, vocab_size = 4000, 70
    tables = tables_of([{}], vocab_size)
    slots = torch.zeros(num_rows, dtype=torch.int32)
    positions = torch.arange(num_rows, dtype=torch.int32)
    noise = -exponential_noise(tables.seeds.expand(num_rows, 2), positions, vocab_size).log()
    logits = torch.full((num_rows, vocab_size), -math.inf)
    logits[:, 3] = 0.0
    logits[:, 68] = noise[:, 3] - noise[:, 68]
    draws = torch.ones(num_rows, dtype=torch.bool)
    expected = REFERENCES["choose"](logits, draws, slots, positions, tables)
    assert 500 < (expected == 68).sum() < 3500

    assert torch.equal(override(logits, draws, slots, positions, tables), expected)


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("everywhere", [True, False])
@pytest.mark.parametrize("override", overrides_of("choose"), ids=str)
def test_poisoned_rows_end_as_in_the_reference(override, everywhere, poison):
    vocab_size = 200
    tables = tables_of(KINDS, vocab_size)
    slots = torch.arange(len(KINDS), dtype=torch.int32)
    logits = torch.randn(len(KINDS), vocab_size)
    logits[:, slice(None) if everywhere else 130] = poison
    for draws in (torch.ones(len(KINDS)).bool(), torch.zeros(len(KINDS)).bool()):
        expected = REFERENCES["choose"](logits, draws, slots, slots, tables)
        if math.isnan(poison) or (everywhere and poison < 0):
            assert (expected == NO_TOKEN).all()
        assert torch.equal(override(logits, draws, slots, slots, tables), expected)


@pytest.mark.parametrize("vocab_size", [1, 17, 64, 130, 40_003])
@pytest.mark.parametrize("num_rows", [0, 1, 6])
@pytest.mark.parametrize("override", overrides_of("greatest"), ids=str)
def test_the_greatest_is_the_first_of_equals(override, num_rows, vocab_size, num_threads):
    for kind in LOGITS:
        values = logits_of(kind, num_rows, vocab_size)
        assert torch.equal(override(values), REFERENCES["greatest"](values))
    values = torch.zeros(num_rows, vocab_size)
    assert override(values).tolist() == [0] * num_rows
    strided = torch.randn(num_rows, 2 * vocab_size)[:, :vocab_size]
    assert torch.equal(override(strided), REFERENCES["greatest"](strided))


@pytest.mark.parametrize("bad", [math.nan, -math.nan])
@pytest.mark.parametrize("override", overrides_of("greatest"), ids=str)
def test_a_nan_anywhere_means_no_token(override, bad):
    for column in (0, 15, 63, 64, 129):
        values = torch.randn(3, 130)
        values[1, column] = bad
        values[2] = -math.inf
        assert override(values).tolist() == [int(values[0].argmax()), NO_TOKEN, NO_TOKEN]


@pytest.mark.parametrize("normalizes", [True, False])
@pytest.mark.parametrize("vocab_size", [1, 17, 130, 2500, 40_003])
@pytest.mark.parametrize("override", overrides_of("gather_logprobs"), ids=str)
def test_logprobs_match_the_reference(override, vocab_size, normalizes, num_threads):
    for kind, k in itertools.product(LOGITS[:3], (0, 1, 5, 100)):
        k = min(k, vocab_size)
        scores = logits_of(kind, 3, vocab_size)
        chosen = torch.tensor([0, vocab_size - 1, vocab_size // 2], dtype=torch.int32)
        ids, values, ranks = override(scores, chosen, k, normalizes)
        wanted = REFERENCES["gather_logprobs"](scores, chosen, k, normalizes)
        assert torch.equal(ranks, wanted[2])
        exact = scores.double().log_softmax(-1) if normalizes else scores
        torch.testing.assert_close(
            values, exact.gather(1, ids.long()).float(), atol=2e-5, rtol=1e-6
        )
        torch.testing.assert_close(values, wanted[1], atol=2e-5, rtol=1e-6)
        if kind == "peaked":  # elsewhere float32 has equals, of which torch takes any
            assert torch.equal(ids, wanted[0])
        alone = override(scores[1:2], chosen[1:2], k, normalizes)
        assert all(torch.equal(a, b[1:2]) for a, b in zip(alone, (ids, values, ranks), strict=True))


@pytest.mark.parametrize("override", overrides_of("gather_logprobs"), ids=str)
def test_logprobs_of_forbidden_and_poisoned_rows_are_minus_infinity(override):
    scores = torch.full((3, 300), -math.inf)
    scores[0, [7, 250]] = torch.tensor([1.0, 3.0])
    scores[2] = math.nan
    chosen = torch.tensor([7, 0, 5], dtype=torch.int32)
    ids, values, ranks = override(scores, chosen, 4, True)
    assert ids[0, :3].tolist() == [7, 250, 7] and ranks[0] == 2
    expected = torch.tensor([1.0, 3.0]).log_softmax(-1)
    torch.testing.assert_close(values[0, :3], expected[[0, 1, 0]])
    assert (values[0, 3:] == -math.inf).all() and (values[1:] == -math.inf).all()


def test_nucleus_weights_are_exponentials_whose_sums_are_exact():
    gaps = -torch.rand(100_000, generator=torch.Generator().manual_seed(0)) * 27
    weights = nucleus_weights(gaps)
    expected = gaps.double().exp() * 2**35
    assert torch.equal(weights, weights.floor())
    assert ((weights.double() - expected).abs() <= 1 + 5e-6 * expected).all()
    assert nucleus_weights(torch.tensor([0.0, -24.5, -math.inf])).tolist() == [2.0**35, 0, 0]
    # The reference relies on torch to sum in float64 and round once per entry.
    assert torch.equal(weights.cumsum(-1), weights.double().cumsum(-1).float())
