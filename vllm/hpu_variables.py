"""Environment variables of the HPU platform; vllm/envs.py reads them."""

from __future__ import annotations

from itertools import product
from typing import Final

from vllm.variable import BOOLEAN, Variable, boolean, count, one_of, positive, share

_AXES: Final = {
    "PROMPT_BS": "prompts in a launch",
    "PROMPT_QUERY": "new tokens of a prompt",
    "PROMPT_SEQ": "new tokens of a prompt (older name of VLLM_PROMPT_QUERY_...)",
    "PROMPT_CTX": "blocks of context of a prompt",
    "DECODE_BS": "rows that decode",
    "DECODE_BLOCK": "blocks that decoding rows read altogether",
    "DECODE_CTX": "blocks that decoding rows read (another name of VLLM_DECODE_BLOCK_...)",
}
_PARTS: Final = {
    "MIN": "least prepared number of {}",
    "STEP": "steps between prepared numbers of {}",
    "MAX": "greatest prepared number of {}",
    "PAD_MAX": "most padding between prepared numbers of {}, strategy pad",
    "PAD_PERCENT": "most padding in percent (0 to 50) between prepared numbers of {}, strategy pad",
}


def _bucket_variable(axis: str, part: str) -> Variable:
    meaning = _PARTS[part].format(_AXES[axis])
    return Variable(
        f"VLLM_{axis}_BUCKET_{part}",
        None,
        count,
        "a whole number, 0 or more",
        f"HPU: {meaning}; see docs/bucketing.md.",
    )


HPU_VARIABLES: Final[tuple[Variable, ...]] = (
    Variable(
        "VLLM_BUCKETING_STRATEGY",
        "exp",
        one_of("exp", "lin", "pad", "exponential", "linear"),
        "exp, lin or pad",
        "HPU: how prepared shapes are spaced: exponential, linear, or by the padding they cause.",
    ),
    Variable(
        "VLLM_EXPONENTIAL_BUCKETING",
        None,
        boolean,
        BOOLEAN,
        "HPU: older form of VLLM_BUCKETING_STRATEGY, over which it wins: 1: exp; 0: lin.",
    ),
    Variable(
        "VLLM_BUCKETING_FROM_FILE",
        "",
        str,
        "a path",
        "HPU: file with the shapes to prepare, instead of a strategy.",
    ),
    Variable(
        "VLLM_BUCKETING_TO_FILE",
        "",
        str,
        "a path",
        "HPU: file for the shapes that would have suited the launches of this process best, "
        "written when it ends; VLLM_BUCKETING_FROM_FILE reads it.",
    ),
    *(_bucket_variable(axis, part) for axis, part in product(_AXES, _PARTS)),
    Variable(
        "VLLM_SKIP_WARMUP",
        False,
        boolean,
        BOOLEAN,
        "HPU: 1: start without warm-up; the first request of each shape waits for its compilation.",
    ),
    Variable(
        "VLLM_GRAPH_RESERVED_MEM",
        0.1,
        share,
        "a share between 0 and 1",
        "HPU: share of the usable memory that is kept for captured graphs.",
    ),
    Variable(
        "VLLM_GRAPH_PROMPT_RATIO",
        0.3,
        share,
        "a share between 0 and 1",
        "HPU: share of the memory for graphs that prompt graphs get; what one phase leaves, the "
        "other may use.",
    ),
    Variable(
        "VLLM_GRAPH_PROMPT_STRATEGY",
        "min_tokens",
        one_of("min_tokens", "max_bs"),
        "min_tokens or max_bs",
        "HPU: which prompt graphs are captured first: those of few tokens or of many rows.",
    ),
    Variable(
        "VLLM_GRAPH_DECODE_STRATEGY",
        "max_bs",
        one_of("min_tokens", "max_bs"),
        "min_tokens or max_bs",
        "HPU: which decode graphs are captured first: those of few tokens or of many rows.",
    ),
    Variable(
        "VLLM_CONFIG_HIDDEN_LAYERS",
        1,
        count,
        "a whole number, 0 or more",
        "HPU, lazy mode: decoder layers per graph of the compiler; 0: all in one.",
    ),
    Variable(
        "VLLM_T_COMPILE_REGIONAL_COMPILATION",
        True,
        boolean,
        BOOLEAN,
        "HPU, torch.compile: compile the layers of the model one by one instead of all at once.",
    ),
    Variable(
        "VLLM_T_COMPILE_DYNAMIC_SHAPES",
        True,
        boolean,
        BOOLEAN,
        "HPU, torch.compile: trace once for all shapes; 0: once for each. Either way every shape "
        "is compiled for the device.",
    ),
    Variable(
        "VLLM_T_COMPILE_FULLGRAPH",
        False,
        boolean,
        BOOLEAN,
        "HPU, torch.compile: refuse graph breaks.",
    ),
    Variable(
        "VLLM_FULL_WARMUP",
        False,
        boolean,
        BOOLEAN,
        "HPU, torch.compile: check no guards after warm-up. A shape that was not warmed up then "
        "fails its step.",
    ),
    Variable(
        "VLLM_ROW_PARALLEL_CHUNKS",
        1,
        positive,
        "a whole number, 1 or more",
        "HPU, several ranks: pieces into which the rows of a row-parallel product are cut, so that "
        "one is multiplied while the one before is summed over the ranks. 1: none.",
    ),
    Variable(
        "VLLM_ROW_PARALLEL_CHUNK_THRESHOLD",
        8192,
        positive,
        "a whole number of tokens, 1 or more",
        "HPU: tokens of a launch from which VLLM_ROW_PARALLEL_CHUNKS applies: with fewer, pieces "
        "cost more than they hide.",
    ),
    Variable(
        "VLLM_HPU_MODULE_LOCKS",
        "",
        str,
        "a directory",
        "HPU: where engines lock the modules they have, for all that share them to see: containers "
        "with a directory in common. Unset: vllm-hpu-modules in the directory for temporary files.",
    ),
    Variable(
        "VLLM_HANDLE_TOPK_DUPLICATES",
        None,
        boolean,
        BOOLEAN,
        "Accepted without effect: tokens as likely as the last one that top_k keeps are kept.",
        has_effect=False,
    ),
    Variable(
        "VLLM_HPU_FORCE_MARK_STEP",
        None,
        boolean,
        BOOLEAN,
        "HPU: accepted without effect: graphs of the compiler end where they must, and every "
        "VLLM_CONFIG_HIDDEN_LAYERS layers.",
        has_effect=False,
    ),
    Variable(
        "VLLM_WEIGHT_LOAD_FORCE_SYNC",
        True,
        boolean,
        BOOLEAN,
        "HPU: accepted without effect: weights are read and copied one by one.",
        has_effect=False,
    ),
    Variable(
        "VLLM_GC_THR_MULTIPLIER",
        16,
        count,
        "a whole number, 0 or more",
        "HPU: accepted without effect: what a start leaves in memory is not looked at again by "
        "Python's garbage collection, which is short for that.",
        has_effect=False,
    ),
)
