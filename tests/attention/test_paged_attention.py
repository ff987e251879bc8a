"""Every attention backend of the CPU against dense float64 attention."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch

from tests.attention.paged_cases import MIXED_ROWS, Row, all_slots, dense_attention, random_meta
from tests.ops.overrides import isas
from vllm.attention.paged import PagedAttention
from vllm.device.attention import AttentionSpec, PagedMeta
from vllm.errors import NotAvailable
from vllm.messages.cache import MLA, CrossAttention, FullAttention
from vllm.platforms import platform_of
from vllm.platforms.cpu import native
from vllm.platforms.cpu.attention import NativeAttention, TorchAttention


@dataclass(frozen=True, slots=True)
class Variant:
    """A backend, and for the native one the instruction set to run it with."""

    kind: type[PagedAttention]
    isa: str | None = None

    def __str__(self) -> str:
        return self.isa or self.kind.name


VARIANTS = [Variant(TorchAttention), *(Variant(NativeAttention, isa) for isa in isas())]
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1.5e-2, torch.float16: 2e-3}


@pytest.fixture(params=VARIANTS, ids=str)
def backend(request: pytest.FixtureRequest) -> Iterator[PagedAttention]:
    variant: Variant = request.param
    if variant.isa:
        native.select_isa(variant.isa)
    yield variant.kind()
    if variant.isa:
        native.select_isa("auto")


@pytest.fixture(params=isas())
def native_backend(request: pytest.FixtureRequest) -> Iterator[NativeAttention]:
    native.select_isa(request.param)
    yield NativeAttention()
    native.select_isa("auto")


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def run_paged(
    backend: PagedAttention, spec: AttentionSpec, rows: tuple[Row, ...], block_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(what the backend gives, what it should give)."""
    generator = torch.Generator().manual_seed(len(rows) + spec.head_dim + block_size)
    value_dim = spec.value_dim or spec.head_dim
    meta = random_meta(rows, block_size, generator)
    kv_spec = FullAttention(block_size, spec.num_kv_heads, spec.head_dim, value_dim, 4)
    num_blocks = int(meta.block_table.max()) + 1 if meta.block_table.numel() else 1
    # Entries nobody wrote hold NaN: reading one of them shows in the result.
    cache = torch.full(backend.kv_shape(kv_spec, num_blocks), float("nan"), dtype=spec.dtype)
    num_tokens = int(meta.query_start[-1])

    def rand(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(spec.dtype)

    q = rand(num_tokens, spec.num_heads, spec.head_dim)
    new_k = rand(num_tokens, spec.num_kv_heads, spec.head_dim)
    new_v = rand(num_tokens, spec.num_kv_heads, value_dim)
    expected = []
    for r, row in enumerate(rows):
        begin = int(meta.query_start[r])
        own = slice(begin, begin + row.count)
        past = row.length - row.count
        k = torch.cat((rand(past, spec.num_kv_heads, spec.head_dim), new_k[own]))
        v = torch.cat((rand(past, spec.num_kv_heads, value_dim), new_v[own]))
        where = all_slots(meta, r, block_size)[:past]
        backend.write_kv(k[:past], v[:past], cache, where)
        if row.count:
            expected.append(dense_attention(q[own], k, v, spec))
    out = backend.forward(q, new_k, new_v, cache, meta, spec)
    assert out.dtype == spec.dtype
    return out.double(), torch.cat(expected) if expected else out.double()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (4, 4), (6, 2), (9, 1)])
@pytest.mark.parametrize(
    ("head_dim", "block_size"), [(1, 16), (24, 32), (64, 16), (80, 64), (33, 256)]
)
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


@pytest.mark.parametrize("window", [None, 1100])
def test_rows_split_over_threads_are_put_together(backend, threads, window):
    threads(3)  # more than enough for these few tiles, so that long rows are cut
    spec = AttentionSpec(4, 2, 64, 0.4, torch.float32, window=window)
    rows = (Row(4003, 1), Row(2600, 3), Row(20, 1))
    got, expected = run_paged(backend, spec, rows, 16)
    torch.testing.assert_close(got, expected, rtol=5e-6, atol=5e-6)


def test_more_heads_than_a_tile_share_one_kv_head(backend):
    spec = AttentionSpec(71, 1, 16, 0.3, torch.float32)
    got, expected = run_paged(backend, spec, MIXED_ROWS, 16)
    torch.testing.assert_close(got, expected, rtol=2e-6, atol=2e-6)


def test_decode_batch_of_many_short_rows(backend):
    spec = AttentionSpec(2, 1, 16, 0.25, torch.float32)
    rows = tuple(Row(1 + 7 * i % 50, 1) for i in range(65))
    got, expected = run_paged(backend, spec, rows, 16)
    torch.testing.assert_close(got, expected, rtol=2e-6, atol=2e-6)


def test_tokens_of_no_row_give_zeros(backend):
    spec = AttentionSpec(2, 1, 16, 0.25, torch.float32)
    meta = random_meta((Row(20, 3),), 16, torch.Generator().manual_seed(0))
    cache = torch.randn(backend.kv_shape(FullAttention(16, 1, 16, 16, 4), 3))
    out = backend.paged_attention(torch.randn(5, 2, 16), cache, meta, spec)
    assert torch.count_nonzero(out[:3]) and not torch.count_nonzero(out[3:])


def test_no_tokens_give_no_output(backend):
    spec = AttentionSpec(2, 1, 16, 0.25, torch.float32)
    got, _ = run_paged(backend, spec, (Row(4, 0),), 16)
    assert got.shape == (0, 2, 16)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("heads", "latent", "rope"), [(1, 40, 8), (5, 33, 8), (16, 64, 7)])
def test_latent_rows_serve_every_head(backend, heads, latent, rope, dtype):
    block_size = 16
    generator = torch.Generator().manual_seed(heads)
    meta = random_meta(MIXED_ROWS, block_size, generator)
    spec = AttentionSpec(heads, 1, latent + rope, 0.2, dtype, latent_dim=latent, rope_dim=rope)
    shape = backend.kv_shape(MLA(block_size, latent, rope, 4), int(meta.block_table.max()) + 1)
    cache = torch.full(shape, float("nan"), dtype=dtype)
    num_tokens = int(meta.query_start[-1])
    q = torch.randn(num_tokens, heads, latent + rope, generator=generator).to(dtype)
    k = torch.randn(num_tokens, 1, latent + rope, generator=generator).to(dtype)
    expected = []
    for r, row in enumerate(MIXED_ROWS):
        begin = int(meta.query_start[r])
        own, past = slice(begin, begin + row.count), row.length - row.count
        old = torch.randn(past, 1, latent + rope, generator=generator).to(dtype)
        backend.write_latent(old.flatten(1), cache, all_slots(meta, r, block_size)[:past])
        if row.count:
            keys = torch.cat((old, k[own]))
            expected.append(dense_attention(q[own], keys, keys[..., :latent], spec))
    out = backend.forward(q, k, k, cache, meta, spec)
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(out.double(), torch.cat(expected), rtol=tolerance, atol=tolerance)


def test_specs_that_cannot_be_served_are_refused(backend):
    caps = platform_of("cpu").capabilities
    uneven = AttentionSpec(5, 2, 16, 1.0, torch.float32)
    assert "5 query heads" in backend.rejects(uneven, caps)
    assert "float64" in backend.rejects(AttentionSpec(4, 2, 16, 1.0, torch.float64), caps)
    assert backend.rejects(AttentionSpec(4, 2, 16, 1.0, torch.float32), caps) is None
    with pytest.raises(NotAvailable, match="CrossAttention"):
        backend.kv_shape(CrossAttention(16, 2, 8, 8, 4, 100), 4)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("head_dim", "value_dim"), [(33, 33), (64, 40), (16, 100)])
@pytest.mark.parametrize(("window", "softcap"), [(None, 0.0), (150, 4.0)])
def test_prompts_of_many_lines_attend_as_decoded_tokens_do(
    backend, head_dim, value_dim, window, softcap, dtype
):
    spec = AttentionSpec(
        6, 2, head_dim, 0.2, dtype, value_dim=value_dim, window=window, softcap=softcap
    )
    rows = (Row(301, 170), Row(129, 129), Row(140, 5), Row(613, 2))
    got, expected = run_paged(backend, spec, rows, 32)
    torch.testing.assert_close(got, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("scale", [0.1, 0.0, -0.1])
def test_prompts_longer_than_a_segment_attend_whatever_the_sign_of_the_scale(backend, scale, dtype):
    spec = AttentionSpec(4, 2, 128, scale, dtype)
    rows = (Row(1100, 230), Row(530, 40))
    got, expected = run_paged(backend, spec, rows, 16)
    torch.testing.assert_close(got, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("window", [None, 150])
def test_a_token_gets_the_same_bits_in_any_chunk_batch_and_number_of_threads(
    native_backend, window, dtype, threads
):
    spec = AttentionSpec(6, 2, 36, 0.2, dtype, window=window)
    attention = native_backend
    generator = torch.Generator().manual_seed(5)
    length = 1100
    whole = random_meta((Row(length, length),), 16, generator)
    cache = torch.zeros(attention.kv_shape(FullAttention(16, 2, 36, 36, 4), 70)).to(dtype)
    q = torch.randn(length, 6, 36, generator=generator).to(dtype)
    kv = torch.randn(length, 2, 36, generator=generator).to(dtype)
    full = attention.forward(q, kv, kv, cache, whole, spec)
    for begin, count, number in ((0, 1, 1), (17, 9, 3), (1099, 1, 3), (1099, 1, 1), (500, 130, 2)):
        threads(number)
        part = whole._replace(
            query_start=torch.tensor([0, count], dtype=torch.int32),
            seq_lens=torch.tensor([begin + count], dtype=torch.int32),
        )
        alone = attention.paged_attention(q[begin : begin + count], cache, part, spec)
        assert torch.equal(alone, full[begin : begin + count])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seq_lens": [500]}, "needs 32 blocks"),
        ({"seq_lens": [1]}, "row 0 has 2 queries"),
        ({"block_table": [[99, 1]]}, r"block_table\[0, 0\] = 99"),
        ({"query_start": [0, 3]}, "query_start must go from 0"),
        ({"query_start": [0]}, "query_start must have size 2"),
    ],
)
def test_metadata_that_would_read_outside_of_the_cache_is_refused(change, message):
    if not isas():
        pytest.skip("native kernels are not built")
    generator = torch.Generator().manual_seed(0)
    meta = random_meta((Row(20, 2),), 16, generator)
    meta = meta._replace(**{k: torch.tensor(v, dtype=torch.int32) for k, v in change.items()})
    spec = AttentionSpec(2, 1, 8, 1.0, torch.float32)
    with pytest.raises(RuntimeError, match=message):
        NativeAttention().paged_attention(
            torch.zeros(2, 2, 8), torch.zeros(3, 1, 16 * 16), meta, spec
        )


# Lengths of rows, and how many leading segments of 512 tokens each has in common with the first.
SHARING = [(1030, 2), (1100, 2), (1536, 2), (2049, 2), (700, 1), (1024, 1), (512, 1), (600, 0)]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "latent", "block_size"),
    [(4, 2, 0, 16), (1, 1, 0, 256), (9, 1, 0, 64), (3, 1, 40, 32)],
)
def test_rows_that_share_blocks_get_the_bits_that_each_gets_alone(
    native_backend, threads, heads, kv_heads, latent, block_size, dtype
):
    generator = torch.Generator().manual_seed(heads)
    spec = AttentionSpec(heads, kv_heads, 48, 0.2, dtype, latent_dim=latent, rope_dim=latent and 8)
    kind = (
        MLA(block_size, latent, 8, 4)
        if latent
        else FullAttention(block_size, kv_heads, spec.head_dim, spec.head_dim, 4)
    )
    tables, num_blocks = [], 0
    for length, shared in SHARING:
        begun = shared * 512 // block_size
        own = -(-length // block_size) - begun
        first = tables[0][:begun] if tables else list(range(begun))
        num_blocks = max(num_blocks, begun)
        tables.append([*first, *range(num_blocks, num_blocks + own)])
        num_blocks += own
    shape = native_backend.kv_shape(kind, num_blocks)
    cache = torch.randn(shape, generator=generator).to(dtype)
    width = max(map(len, tables))
    table = torch.tensor([[*t, *[0] * (width - len(t))] for t in tables], dtype=torch.int32)
    lengths = torch.tensor([length for length, _ in SHARING], dtype=torch.int32)
    q = torch.randn(len(tables), heads, 48, generator=generator).to(dtype)
    attend = native_backend.mla_attention if latent else native_backend.paged_attention

    def attended(rows: slice) -> torch.Tensor:
        some = q[rows]
        start = torch.arange(len(some) + 1, dtype=torch.int32)
        nowhere = torch.empty(0, dtype=torch.int64)
        return attend(
            some, cache, PagedMeta(start, lengths[rows], table[rows], nowhere, 1, 0), spec
        )

    for count in (1, 2):
        threads(count)
        alone = torch.cat([attended(slice(r, r + 1)) for r in range(len(tables))])
        assert torch.equal(attended(slice(None)), alone)
        assert torch.equal(attended(slice(1, 5)), alone[1:5])
