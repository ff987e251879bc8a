"""Attention on padded launches against dense float64 attention."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.attention.paged_cases import Row
from tests.platforms.hpu.attention.cases import Padding, make_case
from vllm.attention.interface import AttentionSpec
from vllm.platforms.hpu.attention import AttentionSettings, HpuAttention
from vllm.worker.planner import Phase

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}
DECODE_ROWS = (Row(1, 1), Row(37, 1), Row(16, 1), Row(17, 1), Row(64, 1), Row(150, 1))
PROMPT_ROWS = (Row(1, 1), Row(16, 16), Row(19, 19), Row(12, 12))
CHUNK_ROWS = (Row(37, 5), Row(16, 16), Row(49, 17), Row(200, 1), Row(33, 1))
PADDINGS = [Padding(), Padding(rows=3, tokens=5, blocks=4)]
EXACT = AttentionSpec(6, 2, 24, 0.2, torch.float32)
DEFAULTS = AttentionSettings()


def check(spec: AttentionSpec, rows, phase: Phase, settings=DEFAULTS, **shape) -> None:
    settings = replace(settings, dtype=spec.dtype)
    backend = HpuAttention(settings)
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
