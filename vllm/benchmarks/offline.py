"""What the offline benchmarks share: an engine from flags, and what they send."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vllm import envs
from vllm.benchmarks.datasets import DatasetOptions, Sample, load_samples
from vllm.benchmarks.datasets.codec import LocalCodec
from vllm.engine.arg_utils import EngineArgs
from vllm.errors import ConfigError
from vllm.inputs import TextPrompt, TokensPrompt
from vllm.transformers_utils.hub import no_model

if TYPE_CHECKING:
    from vllm.entrypoints.llm import LLM
    from vllm.sampling_params import SamplingParams


def add_engine_flags(parser: argparse.ArgumentParser) -> None:
    EngineArgs.add_cli_args(parser)


def check_profiling() -> None:
    """Before a model is loaded in vain. Raises ConfigError."""
    if not envs.VLLM_TORCH_PROFILER_DIR:
        raise ConfigError("--profile: set VLLM_TORCH_PROFILER_DIR to a directory for the traces.")


def make_llm(args: argparse.Namespace) -> LLM:
    """Raises ConfigError or LoadError."""
    # Takes seconds, which --help and a wrong flag need not cost.
    from vllm.entrypoints.llm import LLM

    if not args.model:
        raise no_model()
    return LLM.from_engine_args(EngineArgs.from_cli_args(args))


def samples_of(llm: LLM, options: DatasetOptions, seed: int) -> list[Sample]:
    """Drawn from the whole vocabulary, so that no two share a prefix worth caching."""
    codec = LocalCodec(llm.get_tokenizer)
    return load_samples(options, codec, range(llm.model_config.vocab_size), seed)


def prompts_of(samples: Sequence[Sample]) -> list[TextPrompt | TokensPrompt]:
    return [
        TextPrompt(prompt=sample.prompt)
        if isinstance(sample.prompt, str)
        else TokensPrompt(prompt_token_ids=sample.prompt)
        for sample in samples
    ]


def exact_length(num_tokens: int, n: int = 1, detokenize: bool = True) -> SamplingParams:
    """Never ended by the model."""
    from vllm.sampling_params import SamplingParams

    return SamplingParams(
        n=n,
        temperature=0.0 if n == 1 else 1.0,
        max_tokens=num_tokens,
        ignore_eos=True,
        detokenize=detokenize,
    )
