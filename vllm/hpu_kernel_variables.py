"""Environment variables that choose among HPU kernels; vllm/envs.py reads them."""

from __future__ import annotations

from typing import Final

from vllm.variable import BOOLEAN, Variable, boolean, count


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value


def _positive_or_all(text: str) -> int:
    return -1 if int(text) == -1 else _positive(text)


def _finite(text: str) -> float:
    value = float(text)
    if not -1e4 < value < 1e4:
        raise ValueError(text)
    return value


def _counts(text: str) -> tuple[int, ...]:
    values = tuple(int(part) for part in text.split(","))
    if any(value < 1 for value in values):
        raise ValueError(text)
    return values


POSITIVE: Final = "a whole number, 1 or more"
COUNTS: Final = "whole numbers of 1 or more, separated by commas"

HPU_KERNEL_VARIABLES: Final[tuple[Variable, ...]] = (
    Variable(
        "VLLM_PROMPT_USE_FUSEDSDPA",
        True,
        boolean,
        BOOLEAN,
        "HPU: 0: attention of prompts by single ops instead of the fused kernel.",
    ),
    Variable(
        "VLLM_PROMPT_USE_FLEX_ATTENTION",
        False,
        boolean,
        BOOLEAN,
        "HPU: 1: attention of prompts through torch's flex_attention. Needs "
        "VLLM_PROMPT_USE_FUSEDSDPA=0.",
    ),
    Variable(
        "VLLM_FP32_SOFTMAX",
        None,
        boolean,
        BOOLEAN,
        "HPU: softmax of attention in float32. Default: for models of the Qwen2 family only.",
    ),
    Variable(
        "VLLM_FUSED_BLOCK_SOFTMAX",
        False,
        boolean,
        BOOLEAN,
        "HPU: 1: decode computes the softmax of each block with one kernel.",
    ),
    Variable(
        "VLLM_FUSED_BLOCK_SOFTMAX_ADJUSTMENT",
        None,
        boolean,
        BOOLEAN,
        "HPU: decode merges the blocks of a request with one kernel. Default: on a Gaudi 3 with "
        "software 1.22.0.494 or newer, except for models of the Qwen2 family.",
    ),
    Variable(
        "VLLM_SOFTMAX_CONST_NORM",
        False,
        boolean,
        BOOLEAN,
        "HPU: 1: decode subtracts VLLM_SOFTMAX_CONST_NORM_VALUE from scores instead of their "
        "maximum. Faster, and wrong for scores far from it.",
    ),
    Variable(
        "VLLM_SOFTMAX_CONST_NORM_VALUE",
        10.0,
        _finite,
        "a number between -10000 and 10000",
        "HPU: see VLLM_SOFTMAX_CONST_NORM.",
    ),
    Variable(
        "VLLM_FUSEDSDPA_SLIDE_THLD",
        8192,
        _positive,
        POSITIVE,
        "HPU: prompts of sliding-window layers from this many tokens on use the window of the "
        "fused kernel instead of a mask, if PT_HPU_SDPA_QKV_SLICE_MODE_FWD is on and the padded "
        "length is a multiple of its slice.",
    ),
    Variable(
        "VLLM_HPU_FSDPA_SLICE_ENABLED",
        None,
        boolean,
        BOOLEAN,
        "HPU: cut prefills behind a long prefix into several calls of the fused kernel. Default: "
        "with VLLM_BUCKETING_STRATEGY=pad only, which bounds how much of it is padding.",
    ),
    Variable(
        "VLLM_HPU_FSDPA_SLICE_SEQ_LEN_THLD",
        None,
        _positive,
        POSITIVE,
        "HPU: tokens, prefix included, from which on prefills are cut. Default: "
        "--max-num-batched-tokens, at most 8192.",
    ),
    Variable(
        "VLLM_HPU_FSDPA_SLICE_CHUNK_SIZE",
        None,
        _positive,
        POSITIVE,
        "HPU: tokens per piece of a prefill that is cut. Default: half of "
        "VLLM_HPU_FSDPA_SLICE_SEQ_LEN_THLD, rounded up to a multiple of 1024.",
    ),
    Variable(
        "VLLM_HPU_FSDPA_SLICE_WITH_GRAPH_BREAKS",
        None,
        boolean,
        BOOLEAN,
        "HPU, lazy mode: end the graph of the compiler after each piece of a prefill that is cut. "
        "Default: where no HPU graphs are captured.",
    ),
    Variable(
        "VLLM_CONTIGUOUS_PA",
        False,
        boolean,
        BOOLEAN,
        "HPU: 1: decode reads the KV cache from its beginning to the highest block of the step, "
        "instead of gathering blocks one by one. Turns prefix caching off, which needs blocks in "
        "several requests at once.",
    ),
    Variable(
        "VLLM_DEFRAG",
        None,
        boolean,
        BOOLEAN,
        "HPU: move blocks to the beginning of the KV cache when there are many holes between "
        "them. Default: with VLLM_CONTIGUOUS_PA=1.",
    ),
    Variable(
        "VLLM_DEFRAG_THRESHOLD",
        32,
        count,
        "a whole number, 0 or more",
        "HPU: holes between blocks from which on they are moved.",
    ),
    Variable(
        "VLLM_DEFRAG_WITH_GRAPHS",
        None,
        boolean,
        BOOLEAN,
        "Accepted without effect: moving blocks is one graph of the compiler per number of blocks.",
        has_effect=False,
    ),
    Variable(
        "VLLM_COS_SIN_RECOMPUTE",
        False,
        boolean,
        BOOLEAN,
        "HPU: 1: compute the rotation of positions in every step instead of looking it up.",
    ),
    Variable(
        "VLLM_MOE_CHUNK",
        (),
        _counts,
        COUNTS,
        "HPU: chunk sizes of the mixture-of-experts kernel, one per entry of "
        "VLLM_MOE_TOKEN_BOUNDARY.",
    ),
    Variable(
        "VLLM_MOE_TOKEN_BOUNDARY",
        (),
        _counts,
        COUNTS,
        "HPU: largest number of tokens that each entry of VLLM_MOE_CHUNK is for, ascending.",
    ),
    Variable(
        "MAX_EXPERTS_PER_SLICE",
        -1,
        _positive_or_all,
        "a whole number, 1 or more, or -1",
        "HPU: most experts per call of the mixture-of-experts kernel; -1: all.",
    ),
)
