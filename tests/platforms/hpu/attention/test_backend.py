"""Attention on padded launches against dense float64 attention."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from tests.attention.paged_cases import Row
from tests.platforms.hpu.attention.cases import Padding, make_case
from tests.platforms.hpu.kernel_doubles import Calls, kernels
from vllm.device.attention import AttentionSpec
from vllm.device.capabilities import Capabilities
from vllm.device.launch import Phase
from vllm.errors import ConfigError
from vllm.platforms.hpu.attention import AttentionSettings, HpuAttention, SliceSettings
from vllm.platforms.hpu.kernels import Kernels

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}
DECODE_ROWS = (Row(1, 1), Row(37, 1), Row(16, 1), Row(17, 1), Row(64, 1), Row(150, 1))
PROMPT_ROWS = (Row(1, 1), Row(16, 16), Row(19, 19), Row(12, 12))
CHUNK_ROWS = (Row(37, 5), Row(16, 16), Row(49, 17), Row(200, 1), Row(33, 1))
PADDINGS = [Padding(), Padding(rows=3, tokens=5, blocks=4)]
EXACT = AttentionSpec(6, 2, 24, 0.2, torch.float32)
DEFAULTS = AttentionSettings()
EXACTLY = AttentionSettings(dtype=torch.float32)


def check(spec: AttentionSpec, rows, phase: Phase, settings=DEFAULTS, **shape) -> None:
    settings = replace(settings, dtype=spec.dtype)
    backend = HpuAttention(settings, kernels())
    case = make_case(backend, spec, rows, phase, **shape)
    tolerance = TOLERANCE[spec.dtype]
    torch.testing.assert_close(
        case.run(backend, spec), case.expected, rtol=tolerance, atol=tolerance
    )


@pytest.mark.parametrize("padding", PADDINGS, ids=["exact", "padded"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (4, 4), (6, 2), (9, 1)])
@pytest.mark.parametrize(("head_dim", "block_size"), [(1, 16), (24, 32), (64, 128)])
def test_decode_rows_see_their_own_blocks(heads, kv_heads, head_dim, block_size, dtype, padding):
    spec = AttentionSpec(heads, kv_heads, head_dim, head_dim**-0.5, dtype)
    check(spec, DECODE_ROWS, Phase.DECODE, block_size=block_size, padding=padding)


@pytest.mark.parametrize("padding", PADDINGS, ids=["exact", "padded"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("rows", [PROMPT_ROWS, CHUNK_ROWS], ids=["fresh", "context"])
@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (6, 2), (9, 1)])
def test_prompts_see_context_and_what_precedes_them(heads, kv_heads, rows, dtype, padding):
    spec = AttentionSpec(heads, kv_heads, 24, 0.2, dtype)
    check(spec, rows, Phase.PREFILL, padding=padding)


@pytest.mark.parametrize("padding", PADDINGS, ids=["exact", "padded"])
@pytest.mark.parametrize("window", [1, 2, 15, 16, 17, 18, 40, 1000])
def test_window_hides_older_tokens_exactly(window, padding):
    spec = replace(EXACT, window=window)
    check(spec, DECODE_ROWS, Phase.DECODE, padding=padding)
    check(spec, PROMPT_ROWS, Phase.PREFILL, padding=padding)
    check(spec, CHUNK_ROWS, Phase.PREFILL, padding=padding)


def test_softcap_bounds_scores():
    spec = replace(EXACT, scale=3.0, softcap=5.0)
    check(spec, DECODE_ROWS, Phase.DECODE)
    check(spec, CHUNK_ROWS, Phase.PREFILL)


@pytest.mark.parametrize("padding", PADDINGS, ids=["exact", "padded"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("heads", [1, 5, 16])
def test_latent_rows_serve_every_head(heads, dtype, padding):
    spec = AttentionSpec(heads, 1, 48, 0.2, dtype, latent_dim=40, rope_dim=8)
    check(spec, DECODE_ROWS, Phase.DECODE, padding=padding)
    check(spec, PROMPT_ROWS, Phase.PREFILL, padding=padding)
    check(spec, CHUNK_ROWS, Phase.PREFILL, padding=padding)


def test_large_scores_stay_exact():
    check(replace(EXACT, scale=4.0), DECODE_ROWS, Phase.DECODE)
    check(replace(EXACT, scale=4.0), CHUNK_ROWS, Phase.PREFILL)


FUSED_DECODES = {
    "softmax": AttentionSettings(fused_block_softmax=True),
    "adjustment": AttentionSettings(fused_block_adjustment=True),
    "both": AttentionSettings(fused_block_softmax=True, fused_block_adjustment=True),
    "constant": AttentionSettings(const_norm=3.0),
    "fused-constant": AttentionSettings(const_norm=3.0, fused_block_softmax=True),
    "float32": AttentionSettings(fp32_softmax=True),
    "fused-float32": AttentionSettings(fp32_softmax=True, fused_block_softmax=True),
}


@pytest.mark.parametrize("padding", PADDINGS, ids=["exact", "padded"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("settings", FUSED_DECODES.values(), ids=FUSED_DECODES)
def test_every_softmax_of_decode_gives_the_same(settings, dtype, padding):
    for window in (None, 18):
        spec = replace(EXACT, dtype=dtype, window=window)
        check(spec, DECODE_ROWS, Phase.DECODE, settings, padding=padding)


PROMPTS = {
    "naive": AttentionSettings(prompt="naive"),
    "fused": AttentionSettings(),
    "fused-float32": AttentionSettings(fp32_softmax=True),
    "naive-float32": AttentionSettings(prompt="naive", fp32_softmax=True),
    "sliced": AttentionSettings(slices=SliceSettings(min_tokens=1, chunk_tokens=7)),
}


@pytest.mark.parametrize("padding", PADDINGS, ids=["exact", "padded"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("settings", PROMPTS.values(), ids=PROMPTS)
def test_every_kernel_for_prompts_gives_the_same(settings, dtype, padding):
    grouped = replace(EXACT, dtype=dtype)
    latent = AttentionSpec(4, 1, 32, 0.2, dtype, latent_dim=24, rope_dim=8)
    for spec in (grouped, latent, replace(grouped, window=18), replace(grouped, softcap=4.0)):
        check(spec, PROMPT_ROWS, Phase.PREFILL, settings, padding=padding)
        check(spec, CHUNK_ROWS, Phase.PREFILL, settings, padding=padding)


def test_flex_attention_gives_the_same():
    settings = AttentionSettings(prompt="flex")
    for spec in (EXACT, replace(EXACT, window=18, softcap=4.0)):
        check(spec, PROMPT_ROWS, Phase.PREFILL, settings)
    check(EXACT, CHUNK_ROWS, Phase.PREFILL, settings, padding=PADDINGS[1])


def fused_calls(settings: AttentionSettings, spec: AttentionSpec, rows) -> list:
    calls = Calls()
    backend = HpuAttention(settings, kernels(calls))
    make_case(backend, spec, rows, Phase.PREFILL).run(backend, spec)
    return calls.fused


def test_a_fresh_prompt_is_masked_by_the_kernel():
    (call,) = fused_calls(EXACTLY, EXACT, PROMPT_ROWS)
    mask, _, causal, *_, lengths, side = call
    assert mask is None and causal and side == "right"
    assert lengths.tolist() == [row.count for row in PROMPT_ROWS] and lengths.dtype == torch.int32


def test_context_and_windows_come_with_a_mask():
    for spec, rows in ((EXACT, CHUNK_ROWS), (replace(EXACT, window=18), PROMPT_ROWS)):
        (call,) = fused_calls(EXACTLY, spec, rows)
        assert call[0] is not None and not call[2]


def test_long_prompts_use_the_window_of_the_kernel_where_it_slices():
    rows, spec = (Row(32, 32), Row(20, 20)), replace(EXACT, window=18)
    settings = replace(EXACTLY, window_kernel_min_tokens=32, kernel_slice_tokens=16)
    (call,) = fused_calls(settings, spec, rows)
    assert call[0] is None and call[2] and call[-1] == (17, 0)
    for other in (replace(settings, window_kernel_min_tokens=33), replace(EXACTLY)):
        assert fused_calls(other, spec, rows)[0][0] is not None
    check(spec, rows, Phase.PREFILL, settings)


def test_softcapped_layers_leave_the_kernel_alone():
    assert not fused_calls(EXACTLY, replace(EXACT, softcap=3.0), PROMPT_ROWS)


@pytest.mark.parametrize("chunk", [1, 4, 16, 30, 100])
@pytest.mark.parametrize("context_padding", [None, 0, 20])
@pytest.mark.parametrize(("heads", "kv_heads"), [(6, 2), (3, 3), (4, 1)])
def test_a_sliced_prefill_is_the_whole_one(chunk, context_padding, heads, kv_heads):
    slices = SliceSettings(20, chunk, max_context_padding=context_padding)
    spec = replace(EXACT, num_heads=heads, num_kv_heads=kv_heads)
    rows = (Row(96, 32),) if context_padding == 0 else (Row(87, 27),)
    check(spec, rows, Phase.PREFILL, AttentionSettings(slices=slices))


def test_only_pieces_that_hide_something_are_masked():
    calls = Calls()
    slices = SliceSettings(64, 16, max_context_padding=16)
    backend = HpuAttention(replace(EXACTLY, slices=slices), kernels(calls))
    make_case(backend, EXACT, (Row(80, 32),), Phase.PREFILL).run(backend, EXACT)
    context = [(16, 16, False), (16, 16, False), (16, 16, True)]
    own = [(16, 16, False), (16, 16, True)]
    assert calls.pieces == [*context, own[1], *context, *own]
    assert not calls.fused
    calls.pieces.clear()
    make_case(backend, EXACT, (Row(60, 30),), Phase.PREFILL).run(backend, EXACT)
    assert not calls.pieces and len(calls.fused) == 1


def test_a_kernel_that_is_asked_for_and_missing_is_named():
    settings = AttentionSettings(fused_block_softmax=True)
    with pytest.raises(ConfigError, match="VLLM_FUSED_BLOCK_SOFTMAX=true: the installed"):
        HpuAttention(settings, Kernels())


def test_without_kernels_prompts_are_computed_op_by_op():
    backend = HpuAttention(EXACTLY, Kernels())
    case = make_case(backend, EXACT, CHUNK_ROWS, Phase.PREFILL)
    torch.testing.assert_close(case.run(backend, EXACT), case.expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("phase", [Phase.PREFILL, Phase.DECODE])
@pytest.mark.parametrize("window", [None, 20])
def test_a_launch_of_padding_alone_stays_finite(phase, window):
    spec = replace(EXACT, window=window)
    backend = HpuAttention(EXACTLY, kernels())
    case = make_case(backend, spec, (), phase, padding=Padding(rows=2, tokens=4, blocks=3))
    meta = case.plan(backend)
    out = backend.forward(case.q, case.k, case.v, case.cache, backend.expand(meta), spec)
    assert out.isfinite().all() and case.cache.isfinite().all()


def test_padding_writes_to_the_dummy_block_alone():
    backend = HpuAttention(EXACTLY, kernels())
    for rows, phase in ((DECODE_ROWS, Phase.DECODE), (CHUNK_ROWS, Phase.PREFILL)):
        case = make_case(backend, EXACT, rows, phase, padding=Padding(rows=3, tokens=5, blocks=2))
        before = case.cache.clone()
        case.run(backend, EXACT)
        touched = (case.cache != before).flatten(1).any(1).view(2, -1, 16).any(-1)
        table = case.tables.blocks_np
        own = {
            int(table[i + 1, position // 16])
            for i, row in enumerate(rows)
            for position in range(row.length - row.count, row.length)
        }
        for half in touched:
            assert set(half.nonzero().flatten().tolist()) == own | {0}


def test_metadata_has_one_shape_per_key():
    backend = HpuAttention(EXACTLY, kernels())
    for window in (None, 20):
        spec = replace(EXACT, window=window)
        shapes = set()
        for rows in (DECODE_ROWS, tuple(reversed(DECODE_ROWS)), (Row(20, 1),) * 6):
            case = make_case(backend, spec, rows, Phase.DECODE)
            key = replace(case.launch.key, kv_blocks=40)
            meta = replace(case, launch=replace(case.launch, key=key)).plan(backend)
            shapes.add(tuple(x.shape if isinstance(x, torch.Tensor) else x for x in meta))
        assert len(shapes) == 1


def test_different_values_than_keys_are_refused_with_the_reason():
    capabilities = Capabilities(dtypes=(torch.float32,), default_dtype=torch.float32)
    reason = HpuAttention.rejects(replace(EXACT, value_dim=8), capabilities)
    assert reason == "values of 8 dimensions differ from keys of 24"
    assert HpuAttention.rejects(EXACT, capabilities) is None
    assert "float16" in str(HpuAttention.rejects(replace(EXACT, dtype=torch.float16), capabilities))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("spare", [0, 3])
def test_a_contiguous_cache_is_read_in_place(spare, dtype):
    settings = AttentionSettings(contiguous=True)
    spec = replace(EXACT, dtype=dtype)
    latent = AttentionSpec(5, 1, 48, 0.2, dtype, latent_dim=40, rope_dim=8)
    # Blocks of these rows are 1..n, hence one more than they refer to.
    padding = Padding(rows=2, blocks=1 + spare)
    for other in (spec, latent, replace(spec, window=18)):
        check(other, DECODE_ROWS, Phase.DECODE, settings, padding=padding)


def test_a_block_behind_the_end_of_a_contiguous_launch_is_an_error():
    backend = HpuAttention(replace(EXACTLY, contiguous=True), kernels())
    case = make_case(backend, EXACT, DECODE_ROWS, Phase.DECODE)
    with pytest.raises(AssertionError, match="rows read 22 blocks, the launch was made for 21"):
        case.run(backend, EXACT)


@pytest.mark.parametrize(("contiguous", "latent"), [(False, False), (True, True)])
def test_a_forward_is_traced_as_one_graph_for_all_shapes(contiguous, latent):
    spec = AttentionSpec(4, 1, 32, 0.2, torch.float32, latent_dim=24, rope_dim=8)
    spec = spec if latent else replace(EXACT, window=None)
    backend = HpuAttention(replace(EXACTLY, contiguous=contiguous), Kernels())
    graphs = []

    def count(graph: torch.fx.GraphModule, inputs: list) -> Callable:
        graphs.append(graph)
        return graph.forward

    def step(q, k, v, cache, meta):
        return backend.forward(q, k, v, cache, backend.expand(meta), spec)

    torch._dynamo.reset()
    compiled = torch.compile(step, backend=count, fullgraph=True, dynamic=True)
    for phase, batches in (
        (Phase.DECODE, (DECODE_ROWS[:5], DECODE_ROWS, DECODE_ROWS[3:])),
        (Phase.PREFILL, ((Row(40, 20),), (Row(65, 24),), (Row(90, 31),))),
    ):
        graphs.clear()
        for rows in batches:
            # No two sizes of the first batch are equal: they would be traced as one.
            padding = Padding(blocks=3)
            case = make_case(backend, spec, rows, phase, padding=padding)
            meta = case.plan(backend)
            out = compiled(case.q, case.k, case.v, case.cache, meta)
            torch.testing.assert_close(out, case.expected, rtol=1e-5, atol=1e-5)
        assert len(graphs) == 1
