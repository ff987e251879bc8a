"""Engines on the HPU of this process, each beside the CPU's: run by test_modes, once per mode.

python -m tests.platforms.hpu.in_mode CHECK [NAME ...]

prints JSON lines. CHECK is one of CHECKS, NAME what to check instead of everything.
"""

from __future__ import annotations

import gc
import itertools
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.loader.quantizing import quantized as quantize
from tests.models import cacheless as no_cache
from tools.tiny_models import random_checkpoint
from vllm import LLM, SamplingParams
from vllm.inputs import TokensPrompt
from vllm.platforms.hpu import bridge

MAX_TOKENS = 10
LENGTHS = (1, 3, 15, 16, 17, 33)
MAX_MODEL_LEN = 64

Tokens = list[list[int]]


def prompts(vocab_size: int = 500) -> Tokens:
    return [
        [(7 * length + 13 * i) % (vocab_size - 5) + 3 for i in range(length)] for length in LENGTHS
    ]


def params(seed: int | None = None) -> SamplingParams:
    how: dict[str, Any] = {"temperature": 0.0}
    if seed is not None:
        how = {"temperature": 0.9, "top_k": 20, "top_p": 0.95, "seed": seed}
    return SamplingParams(max_tokens=MAX_TOKENS, ignore_eos=True, **how)


def tokens_of(llm: LLM) -> dict[str, Tokens]:
    wrapped = [TokensPrompt(prompt_token_ids=prompt) for prompt in prompts()]
    ways = {
        "greedy": [params() for _ in wrapped],
        "seeded": [params(seed) for seed in range(len(wrapped))],
        "warm": [params() for _ in wrapped],
    }
    return {
        name: [list(o.outputs[0].token_ids) for o in llm.generate(wrapped, way, use_tqdm=False)]
        for name, way in ways.items()
    }


def with_engine(
    path: Path, device: str, loaded_before: Path | None = None, **options: Any
) -> dict[str, Tokens]:
    """Tokens of the checkpoint at `path`; with `loaded_before`, of an engine that had another."""
    llm = LLM(
        str(loaded_before or path),
        device=device,
        **{
            "dtype": "float32",
            "block_size": 16,
            "max_model_len": MAX_MODEL_LEN,
            "max_num_seqs": 4,
            "max_num_batched_tokens": 32,
            "num_gpu_blocks_override": 64,
            "disable_log_stats": True,
            **options,
        },
    )
    try:
        tokens = tokens_of(llm)
        if loaded_before is not None:
            llm.collective_rpc("reload_weights", args=(str(path),))
            llm.reset_prefix_cache()
            before, tokens = tokens, tokens_of(llm)
            assert before != tokens, "the weights are still the first ones"
        llm.llm_engine.call("check_integrity")
        return tokens
    finally:
        llm.llm_engine.shutdown()
        gc.collect()


def architectures(names: Sequence[str], **options: Any) -> None:
    for name in names or random_checkpoint.ARCHITECTURES:
        with tempfile.TemporaryDirectory() as folder:
            path = random_checkpoint.make(name, Path(folder), seed=3)
            compare(name, path, {}, options)


def combinations(names: Sequence[str], **options: Any) -> None:
    """Of a model with windows and one without: the ways in which an engine can be fast."""
    for name in names or ("llama", "gemma2"):
        with tempfile.TemporaryDirectory() as folder:
            path = random_checkpoint.make(name, Path(folder), seed=3)
            for depth in (1, 3):
                for caching in (False, True):
                    for blocks in (64, 9 if name == "llama" else 16):
                        how = {
                            "pipeline_depth": depth,
                            "enable_prefix_caching": caching,
                            "num_gpu_blocks_override": blocks,
                        }
                        compare(f"{name} {how}", path, how, options)


def traces(options: dict[str, Any]) -> bool:
    """Whether every engine traces its layers, which takes most of the time of these checks."""
    return not bridge.is_lazy() and not options["enforce_eager"]


def equivalence(names: Sequence[str], **options: Any) -> None:
    """All combinations of tests/engine_e2e/test_equivalence.py. Takes minutes: run by hand."""
    with tempfile.TemporaryDirectory() as folder:
        path = random_checkpoint.make("llama", Path(folder), seed=3)
        expected = with_engine(path, "cpu")
        for depth, chunk, caching, blocks, executor in itertools.product(
            (1, 2, 4), (64, 16), (False, True), (64, 9), names or ("uni", "mp")
        ):
            how = {
                "pipeline_depth": depth,
                "max_num_batched_tokens": chunk,
                "enable_chunked_prefill": chunk < MAX_MODEL_LEN,
                "enable_prefix_caching": caching,
                "num_gpu_blocks_override": blocks,
                "distributed_executor_backend": executor,
            }
            given = with_engine(path, "hpu", **how, **options)
            problem = "" if given == expected else f"HPU {given}, CPU {expected}"
            print(json.dumps({"name": str(how), "problem": problem, "seconds": 0}), flush=True)


def compare(
    name: str,
    path: Path,
    how: dict[str, Any],
    options: dict[str, Any],
    loaded_before: Path | None = None,
) -> None:
    started = time.monotonic()
    try:
        given = with_engine(path, "hpu", loaded_before, **how, **options)
        expected = with_engine(path, "cpu", **how)
        problem = "" if given == expected else f"HPU {given}, CPU {expected}"
    except Exception:  # every problem is reported, by name
        problem = traceback.format_exc()
    line = {"name": name, "problem": problem, "seconds": round(time.monotonic() - started, 1)}
    print(json.dumps(line), flush=True)


def reload(names: Sequence[str], **options: Any) -> None:
    """Weights loaded again in place, under what the first were captured and compiled to."""
    for name in names or ("llama", "deepseek_v3")[: 1 if traces(options) else 2]:
        with tempfile.TemporaryDirectory() as folder:
            first, second = (
                random_checkpoint.make(name, Path(folder) / str(seed), seed=seed) for seed in (3, 4)
            )
            compare(name, second, {}, options, loaded_before=first)


def quantized(names: Sequence[str], **options: Any) -> None:
    """8-bit weights, multiplied by torch's references."""
    for name in names or ("llama", "mixtral")[: 1 if traces(options) else 2]:
        with tempfile.TemporaryDirectory() as folder:
            path = random_checkpoint.make(name, Path(folder) / "plain", seed=3)
            for kind in ("int", "float"):
                compare(f"{name} {kind}", quantize(path, Path(folder) / kind, kind), {}, options)


def cacheless(names: Sequence[str], **options: Any) -> None:
    """A model without a KV cache, beside plain torch; names are strategies of bucketing."""
    with tempfile.TemporaryDirectory() as folder:
        path = no_cache.make(Path(folder))
        expected = no_cache.greedy(path, prompts(), MAX_TOKENS)
        for contiguous, strategy in itertools.product(("false", "true"), names or ("exp",)):
            os.environ["VLLM_CONTIGUOUS_PA"] = contiguous
            os.environ["VLLM_BUCKETING_STRATEGY"] = strategy
            name = f"{strategy}, contiguous {contiguous}"
            given = with_engine(path, "hpu", **options)["greedy"]
            problem = "" if given == expected else f"HPU {given}, torch {expected}"
            print(json.dumps({"name": name, "problem": problem, "seconds": 0}), flush=True)


def bfloat16(names: Sequence[str], **options: Any) -> None:
    """Log-probabilities of a fixed text: as near to float32 as the CPU's in bfloat16 are."""
    for name in names or ("llama", "gemma2", "mixtral", "deepseek_v3"):
        with tempfile.TemporaryDirectory() as folder:
            path = random_checkpoint.make(name, Path(folder), seed=3)
            exact = scores_of(path, device="cpu", dtype="float32")
            cpu = scores_of(path, device="cpu", dtype="bfloat16")
            hpu = scores_of(path, device="hpu", dtype="bfloat16", **options)
        cpu_error, hpu_error = (abs(some - exact).mean() for some in (cpu, hpu))
        problem = "" if hpu_error < 2 * cpu_error + 1e-3 else "further off than the CPU"
        line = {"name": name, "problem": problem, "hpu": hpu_error, "cpu": cpu_error}
        print(json.dumps(line), flush=True)


def scores_of(path: Path, **options: Any) -> Any:
    llm = LLM(
        str(path),
        block_size=16,
        max_model_len=64,
        max_num_seqs=2,
        disable_log_stats=True,
        **options,
    )
    try:
        text = TokensPrompt(prompt_token_ids=prompts()[-1])
        asked = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0)
        (output,) = llm.generate([text], asked, use_tqdm=False)
        assert output.prompt_logprobs is not None
        rows = [row for row in output.prompt_logprobs if row is not None]
        return np.array([next(iter(row.values())).logprob for row in rows])
    finally:
        llm.llm_engine.shutdown()
        gc.collect()


CHECKS: dict[str, Callable[..., None]] = {
    "architectures": architectures,
    "combinations": combinations,
    "quantized": quantized,
    "reload": reload,
    "cacheless": cacheless,
    "bfloat16": bfloat16,
    "equivalence": equivalence,
}

if __name__ == "__main__":
    eager = "--enforce-eager" in sys.argv
    words = [word for word in sys.argv[1:] if not word.startswith("--")]
    CHECKS[words[0]](words[1:], enforce_eager=eager)
