"""What the offline benchmarks share: an engine from flags, and prompts of random tokens."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np

from vllm.engine.arg_utils import EngineArgs
from vllm.entrypoints.llm import LLM
from vllm.errors import ConfigError
from vllm.inputs import TokensPrompt
from vllm.sampling_params import SamplingParams


def add_engine_flags(parser: argparse.ArgumentParser) -> None:
    EngineArgs.add_cli_args(parser)


def make_llm(args: argparse.Namespace) -> LLM:
    return LLM.from_engine_args(EngineArgs.from_cli_args(args))


def random_prompts(llm: LLM, num_prompts: int, length: int, seed: int) -> list[TokensPrompt]:
    """Drawn from the whole vocabulary, so that no two share a prefix worth caching."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, llm.model_config.vocab_size, size=(num_prompts, length))
    return [TokensPrompt(prompt_token_ids=row) for row in ids.tolist()]


def exact_length(num_tokens: int) -> SamplingParams:
    """Greedy, and never ended by the model."""
    return SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True, detokenize=False)


def check_at_least_one(args: argparse.Namespace, names: Sequence[str]) -> None:
    values: dict[str, Any] = vars(args)
    for name in names:
        if values[name] < 1:
            flag = "--" + name.replace("_", "-")
            raise ConfigError(f"{flag} {values[name]}: must be at least 1.")
