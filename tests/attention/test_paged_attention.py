"""Every attention backend of the CPU against dense float64 attention."""

from __future__ import annotations

import pytest
import torch
from tests.attention.paged_cases import MIXED_ROWS, Row, all_slots, dense_attention, random_meta

from vllm.attention.interface import AttentionSpec
from vllm.attention.paged import PagedAttention
from vllm.core.kv_cache.spec import MLA, CrossAttention, FullAttention
from vllm.errors import NotAvailable
from vllm.platforms import current_platform

BACKENDS = current_platform("cpu").attention_backends()
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1.5e-2, torch.float16: 2e-3}

pytestmark = pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)


def run_paged(
    backend: type[PagedAttention], spec: AttentionSpec, rows: tuple[Row, ...], block_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(what the backend gives, what it should give)."""
    generator = torch.Generator().manual_seed(len(rows) + spec.head_dim + block_size)
    value_dim = spec.value_dim or spec.head_dim
    meta = random_meta(rows, block_size, generator)
    kv_spec = FullAttention(block_size, spec.num_kv_heads, spec.head_dim, value_dim, 4)
    attention = backend()
    num_blocks = int(meta.block_table.max()) + 1 if meta.block_table.numel() else 1
    # Entries nobody wrote hold NaN: reading one of them shows in the result.
    cache = torch.full(attention.kv_shape(kv_spec, num_blocks), float("nan"), dtype=spec.dtype)
    num_tokens = int(meta.query_start[-1])

    def rand(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(spec.dtype)

    q = rand(num_tokens, spec.num_heads, spec.head_dim)
    new_k, new_v = rand(num_tokens, spec.num_kv_heads, spec.head_dim), None
    new_v = rand(num_tokens, spec.num_kv_heads, value_dim)
    expected = []
    for r, row in enumerate(rows):
        begin = int(meta.query_start[r])
        own = slice(begin, begin + row.count)
        past = row.length - row.count
        k = torch.cat((rand(past, spec.num_kv_heads, spec.head_dim), new_k[own]))
        v = torch.cat((rand(past, spec.num_kv_heads, value_dim), new_v[own]))
        where = all_slots(meta, r, block_size)[:past]
        attention.write_kv(k[:past], v[:past], cache, where)
        if row.count:
            expected.append(dense_attention(q[own], k, v, spec))
    out = attention.forward(q, new_k, new_v, cache, meta, spec)
    assert out.dtype == spec.dtype
    return out.double(), torch.cat(expected) if expected else out.double()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("block_size", [16, 32, 256])
@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (4, 4), (6, 2), (9, 1)])
@pytest.mark.parametrize("head_dim", [1, 24, 64, 80])
def test_mixed_rows_attend_to_their_own_blocks(
    backend, head_dim, heads, kv_heads, block_size, dtype
):
    spec = AttentionSpec(heads, kv_heads, head_dim, head_dim**-0.5, dtype)
    got, expected = run_paged(backend, spec, MIXED_ROWS, block_size)
    torch.testing.assert_close(got, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("window", [1, 2, 15, 16, 17, 40])
def test_window_hides_older_tokens(backend, window):
    spec = AttentionSpec(4, 2, 32, 0.3, torch.float32, window=window)
    got, expected = run_paged(backend, spec, MIXED_ROWS, 16)
    torch.testing.assert_close(got, expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_softcap_bounds_scores(backend, dtype):
    spec = AttentionSpec(4, 2, 32, 3.0, dtype, softcap=5.0, window=20)
    got, expected = run_paged(backend, spec, MIXED_ROWS, 16)
    torch.testing.assert_close(got, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("value_dim", [8, 40, 100])
def test_values_may_be_narrower_or_wider_than_keys(backend, value_dim):
    spec = AttentionSpec(4, 2, 48, 0.2, torch.float32, value_dim=value_dim)
    got, expected = run_paged(backend, spec, MIXED_ROWS, 16)
    torch.testing.assert_close(got, expected, rtol=2e-6, atol=2e-6)


def test_long_sequences_and_large_scores_stay_exact(backend):
    spec = AttentionSpec(4, 2, 64, 4.0, torch.float32)
    rows = (Row(1500, 1), Row(700, 130), Row(1025, 3))
    got, expected = run_paged(backend, spec, rows, 16)
    torch.testing.assert_close(got, expected, rtol=5e-5, atol=5e-5)


def test_decode_batch_of_many_short_rows(backend):
    spec = AttentionSpec(2, 1, 16, 0.25, torch.float32)
    rows = tuple(Row(1 + 7 * i % 50, 1) for i in range(65))
    got, expected = run_paged(backend, spec, rows, 16)
    torch.testing.assert_close(got, expected, rtol=2e-6, atol=2e-6)


def test_no_tokens_give_no_output(backend):
    spec = AttentionSpec(2, 1, 16, 0.25, torch.float32)
    got, _ = run_paged(backend, spec, (Row(4, 0),), 16)
    assert got.shape == (0, 2, 16)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("heads", [1, 5, 16])
def test_latent_rows_serve_every_head(backend, heads, dtype):
    block_size, latent, rope = 16, 40, 8
    generator = torch.Generator().manual_seed(heads)
    meta = random_meta(MIXED_ROWS, block_size, generator)
    spec = AttentionSpec(heads, 1, latent + rope, 0.2, dtype, latent_dim=latent, rope_dim=rope)
    attention = backend()
    shape = attention.kv_shape(MLA(block_size, latent, rope, 4), int(meta.block_table.max()) + 1)
    cache = torch.full(shape, float("nan"), dtype=dtype)
    num_tokens = int(meta.query_start[-1])
    q = torch.randn(num_tokens, heads, latent + rope, generator=generator).to(dtype)
    k = torch.randn(num_tokens, 1, latent + rope, generator=generator).to(dtype)
    expected = []
    for r, row in enumerate(MIXED_ROWS):
        begin = int(meta.query_start[r])
        own, past = slice(begin, begin + row.count), row.length - row.count
        old = torch.randn(past, 1, latent + rope, generator=generator).to(dtype)
        attention.write_latent(old.flatten(1), cache, all_slots(meta, r, block_size)[:past])
        if row.count:
            keys = torch.cat((old, k[own]))
            expected.append(dense_attention(q[own], keys, keys[..., :latent], spec))
    out = attention.forward(q, k, k, cache, meta, spec)
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(out.double(), torch.cat(expected), rtol=tolerance, atol=tolerance)


def test_specs_that_cannot_be_served_are_refused(backend):
    caps = current_platform("cpu").capabilities
    uneven = AttentionSpec(5, 2, 16, 1.0, torch.float32)
    assert "5 query heads" in backend.rejects(uneven, caps)
    assert "float64" in backend.rejects(AttentionSpec(4, 2, 16, 1.0, torch.float64), caps)
    assert backend.rejects(AttentionSpec(4, 2, 16, 1.0, torch.float32), caps) is None
    with pytest.raises(NotAvailable, match="CrossAttention"):
        backend().kv_shape(CrossAttention(16, 2, 8, 8, 4, 100), 4)
