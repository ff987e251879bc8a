"""One test for all combinations: whatever the engine does to be fast, the tokens are the same."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.engine.by_core import ByCore
from tools.tiny_models import random_checkpoint
from vllm import LLM, SamplingParams
from vllm.inputs import TokensPrompt

pytestmark = pytest.mark.engine

MAX_TOKENS = 24
SHARED = "Once upon a time there was a little fox who lived in a small house near the river. "
TEXTS = [
    "One day",
    "Tell me a story about a brave cat.",
    SHARED + "One morning the fox",
    SHARED + "One morning the fox found a red ball",
    SHARED * 2 + "It was sunny.",
    "What is 12 + 7?",
    "The boat was",
    SHARED * 3,
]


Tokens = list[list[int]]


@dataclass(frozen=True)
class Expected:
    """Of a model, whatever computes it."""

    path: Path
    prompts: Tokens
    greedy: Tokens
    seeded: Tokens

    @classmethod
    def of(cls, path: Path, prompts: Tokens) -> Expected:
        return cls(path, prompts, greedy_of(path, prompts), seeded_of(path, prompts))


@pytest.fixture(scope="module")
def story(tiny_story: Path) -> Expected:
    tokenizer = AutoTokenizer.from_pretrained(tiny_story)
    return Expected.of(tiny_story, [tokenizer(text).input_ids for text in TEXTS])


@pytest.fixture(scope="module")
def mixture(story: Expected, tmp_path_factory: pytest.TempPathFactory) -> Expected:
    """A model with experts, of the same prompts."""
    path = random_checkpoint.make("qwen3_moe", tmp_path_factory.mktemp("mixture") / "model")
    return Expected.of(path, story.prompts)


def greedy_of(path: Path, prompts: Tokens) -> Tokens:
    """What transformers makes of the prompts, one at a time."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    rows = []
    for prompt in prompts:
        out = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            max_new_tokens=MAX_TOKENS,
            min_new_tokens=MAX_TOKENS,
            eos_token_id=None,
            pad_token_id=0,
        )
        rows.append(out[0, len(prompt) :].tolist())
    return rows


def seeded_of(path: Path, prompts: Tokens) -> Tokens:
    """Seeded draws of each request alone, in the plainest engine."""
    llm = LLM(
        str(path),
        dtype="float32",
        pipeline_depth=1,
        enable_prefix_caching=False,
        max_num_batched_tokens=4096,
        disable_log_stats=True,
    )
    return [tokens_of(llm, [prompt], sampled(i))[0] for i, prompt in enumerate(prompts)]


def sampled(seed: int) -> list[SamplingParams]:
    return [
        SamplingParams(
            temperature=0.9, top_p=0.95, top_k=50, seed=seed, max_tokens=MAX_TOKENS, ignore_eos=True
        )
    ]


def tokens_of(llm: LLM, prompts: Tokens, params: list[SamplingParams]) -> Tokens:
    wrapped = [TokensPrompt(prompt_token_ids=prompt) for prompt in prompts]
    outputs = llm.generate(wrapped, params, use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in outputs]


# Of every two settings all values meet. Sets of these are tried with what takes longer to start.
PAIRS = {
    (1, 0, False, False),
    (1, 16, True, True),
    (2, 0, True, False),
    (2, 16, False, True),
    (4, 0, False, True),
    (4, 16, True, False),
}


# Tensor, pipeline and data parallel sizes.
EXECUTORS = {
    "uni": (1, 1, 1),
    "mp": (1, 1, 1),
    "2 ranks": (2, 1, 1),
    "2 stages": (1, 2, 1),
    "3 stages": (1, 3, 1),
    "2 stages of 2 ranks": (2, 2, 1),
    "2 copies": (1, 1, 2),
    "2 copies of 2 ranks": (2, 1, 2),
    "2 copies, shared experts": (1, 1, 2),
    "2 copies of 2 ranks, shared experts": (2, 1, 2),
    "2 copies of 2 stages, shared experts": (1, 2, 2),
}
# Of PAIRS, for copies: each of them has processes to start.
COPIED = {(1, 16, True, True), (4, 0, False, True), (2, 0, True, False)}


def combinations() -> Iterator[Any]:
    """(depth, chunk, caching, preemption, executor)"""
    settings = itertools.product((1, 2, 4), (0, 16), (False, True), (False, True))
    for some, executor in itertools.product(settings, EXECUTORS):
        depth, chunk, caching, preemption = some
        ranks, stages, copies = EXECUTORS[executor]
        if depth < stages:
            continue
        name = [
            f"depth {depth}",
            "chunks" if chunk else "whole",
            "cache" if caching else "no cache",
        ]
        name += ["preempting" if preemption else "roomy", executor]
        tried = COPIED if copies > 1 else PAIRS
        num_ranks = ranks * stages * copies
        is_one_of_many = num_ranks > 2 or (executor != "uni" and some not in tried)
        marks = [pytest.mark.product] if is_one_of_many else []
        yield pytest.param(*some, executor, id=", ".join(name), marks=marks)


@pytest.mark.parametrize(
    ("depth", "chunk", "caching", "preemption", "executor"), list(combinations())
)
def test_tokens_are_the_same_in_every_combination(
    request: pytest.FixtureRequest,
    depth: int,
    chunk: int,
    caching: bool,
    preemption: bool,
    executor: str,
) -> None:
    shares_experts = "shared experts" in executor
    expected: Expected = request.getfixturevalue("mixture" if shares_experts else "story")
    prompts = expected.prompts
    longest = max(len(prompt) for prompt in prompts) + MAX_TOKENS
    max_model_len = -(-longest // 16) * 16
    llm = LLM(
        str(expected.path),
        dtype="float32",
        max_model_len=max_model_len,
        max_num_seqs=8,
        block_size=16,
        pipeline_depth=depth,
        enable_chunked_prefill=bool(chunk),
        max_num_batched_tokens=chunk or max_model_len,
        enable_prefix_caching=caching,
        distributed_executor_backend="mp" if executor == "mp" else None,
        tensor_parallel_size=EXECUTORS[executor][0],
        pipeline_parallel_size=EXECUTORS[executor][1],
        data_parallel_size=EXECUTORS[executor][2],
        enable_expert_parallel=shares_experts,
        # Enough for the longest request and a bit: the others get in its way.
        num_gpu_blocks_override=max_model_len // 16 + 4 if preemption else 1024,
        disable_log_stats=True,
    )
    by_core = ByCore()
    llm.llm_engine.add_stat_logger(by_core)
    try:
        everything = [
            SamplingParams(temperature=0, max_tokens=MAX_TOKENS, ignore_eos=True) for _ in prompts
        ]
        draws = [sampled(i)[0] for i in range(len(prompts))]
        # Cold, then warm where there is a cache; greedy and seeded.
        for _ in range(2):
            assert tokens_of(llm, prompts, everything) == expected.greedy
            assert tokens_of(llm, prompts, draws) == expected.seeded
        assert len(by_core.stats) == EXECUTORS[executor][2]
        assert (by_core.total("num_preemptions") > 0) == preemption
        assert (by_core.total("prefix_hits") > 0) == caching
        llm.llm_engine.call("check_integrity")
    finally:
        llm.llm_engine.shutdown()
        gc.collect()
