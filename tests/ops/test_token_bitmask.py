"""Masks of grammars: which logits survive."""

from __future__ import annotations

import pytest
import torch

from tests.ops.overrides import overrides_of
from vllm.ops import REFERENCES

reference = REFERENCES["apply_token_bitmask"]


def random_case(num_rows: int, vocab_size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits, masks, and as bool what the masks allow."""
    generator = torch.Generator().manual_seed(vocab_size)
    logits = torch.randn(num_rows, vocab_size, generator=generator)
    allowed = torch.rand(num_rows, vocab_size, generator=generator) < 0.3
    for row in range(num_rows):  # words that are all ones or all zeros
        allowed[row, 32:64] = row % 2 == 0
    padded = torch.zeros(num_rows, -(-vocab_size // 32) * 32, dtype=torch.int64)
    padded[:, :vocab_size] = allowed
    words = (padded.unflatten(1, (-1, 32)) << torch.arange(32)).sum(-1)
    return logits, words.to(torch.int32), allowed


@pytest.mark.parametrize("vocab_size", [1, 31, 32, 33, 97, 2048])
@pytest.mark.parametrize("num_rows", [0, 1, 5])
def test_reference_keeps_allowed_logits_and_forbids_the_others(num_rows, vocab_size):
    logits, masks, allowed = random_case(num_rows, vocab_size)
    expected = torch.where(allowed, logits, torch.tensor(-torch.inf))
    reference(logits, masks)
    assert torch.equal(logits, expected)


@pytest.mark.parametrize("vocab_size", [0, 1, 31, 32, 33, 97, 151_669])
@pytest.mark.parametrize("num_rows", [0, 1, 5])
@pytest.mark.parametrize("override", overrides_of("apply_token_bitmask"), ids=str)
def test_overrides_do_what_the_reference_does(override, num_rows, vocab_size):
    logits, masks, _ = random_case(num_rows, vocab_size)
    expected = logits.clone()
    reference(expected, masks)
    override(logits, masks)
    assert torch.equal(logits, expected)
