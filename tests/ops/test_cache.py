"""Writing to the paged cache."""

from __future__ import annotations

import pytest
import torch

from tests.ops.overrides import overrides_of
from vllm.ops import REFERENCES
from vllm.ops.cache import split_kv

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("head_dim", "value_dim"), [(1, 1), (24, 24), (33, 16), (16, 40)])
@pytest.mark.parametrize("num_tokens", [0, 1, 7, 48])
def test_write_kv_matches_reference(num_tokens, head_dim, value_dim, dtype):
    generator = torch.Generator().manual_seed(num_tokens)
    fused = torch.randn(num_tokens, 3 * (head_dim + value_dim), generator=generator).to(dtype)
    k = fused[:, : 3 * head_dim].view(num_tokens, 3, head_dim)
    v = fused[:, 3 * head_dim :].view(num_tokens, 3, value_dim)
    slots = torch.randperm(4 * 16, generator=generator)[:num_tokens]
    expected = torch.zeros(4, 3, 16 * (head_dim + value_dim), dtype=dtype)
    REFERENCES["write_kv"](k, v, expected, slots)
    for override in overrides_of("write_kv"):
        cache = torch.zeros_like(expected)
        override(k, v, cache, slots)
        assert torch.equal(cache, expected)


def test_written_keys_and_values_are_where_the_layout_says():
    k, v = torch.randn(1, 2, 8), torch.randn(1, 2, 4)
    cache = torch.zeros(3, 2, 16 * 12)
    REFERENCES["write_kv"](k, v, cache, torch.tensor([2 * 16 + 5]))
    keys, values = split_kv(cache, 8, 4)
    assert torch.equal(keys[2, :, :, 5], k[0])
    assert torch.equal(values[2, :, 5], v[0])
    assert torch.count_nonzero(cache) == k.numel() + v.numel()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_tokens", [0, 1, 20])
def test_write_latent_matches_reference(num_tokens, dtype):
    latent = torch.randn(num_tokens, 30).to(dtype)[:, :21]
    slots = torch.randperm(3 * 16)[:num_tokens]
    expected = torch.zeros(3, 16, 21, dtype=dtype)
    REFERENCES["write_latent"](latent, expected, slots)
    for override in overrides_of("write_latent"):
        cache = torch.zeros_like(expected)
        override(latent, cache, slots)
        assert torch.equal(cache, expected)


@pytest.mark.parametrize("slot", [-1, 32])
def test_entries_outside_the_cache_are_refused(slot):
    for override in overrides_of("write_kv"):
        with pytest.raises(RuntimeError, match=rf"slot_mapping\[0\] = {slot}"):
            k = torch.zeros(1, 1, 4)
            override(k, k, torch.zeros(2, 1, 16 * 8), torch.tensor([slot]))


def test_a_cache_of_another_dtype_is_refused():
    for override in overrides_of("write_kv"):
        with pytest.raises(RuntimeError, match="cache must be Float, is Half"):
            k = torch.zeros(1, 1, 4)
            override(k, k, torch.zeros(2, 1, 16 * 8).half(), torch.tensor([0]))
