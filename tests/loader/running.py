"""Small engines, and what they write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vllm import LLM, SamplingParams

PROMPTS = [[7, 11, 5], [100, 3, 44, 9, 250, 17, 30], list(range(3, 40))]


def engine(path: Path, **options: Any) -> LLM:
    return LLM(
        str(path),
        **{
            "dtype": "float32",
            "max_model_len": 128,
            "max_num_seqs": 4,
            "num_gpu_blocks_override": 64,
            "skip_tokenizer_init": True,
            "use_tqdm_on_load": False,
            **options,
        },
    )


def tokens_of(llm: LLM) -> list[list[int]]:
    """Greedy continuations of PROMPTS."""
    params = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
    prompts = [{"prompt_token_ids": prompt} for prompt in PROMPTS]
    return [list(o.outputs[0].token_ids) for o in llm.generate(prompts, params, use_tqdm=False)]
