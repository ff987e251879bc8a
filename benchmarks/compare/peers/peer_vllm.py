"""Adapter of everything with vLLM's offline API: vLLM, and we."""

from __future__ import annotations

from typing import Any


class Engine:
    def __init__(self, settings: dict[str, Any]) -> None:
        from vllm import LLM, SamplingParams

        self.params = SamplingParams
        self.llm = LLM(
            settings["model"],
            dtype="bfloat16",
            max_model_len=settings["max_model_len"],
            max_num_seqs=settings["max_num_seqs"],
            **settings["options"],
        )

    def generate(self, prompts: list[list[int]], max_tokens: int) -> list[list[int]]:
        params = self.params(temperature=0.0, ignore_eos=True, max_tokens=max_tokens)
        outputs = self.llm.generate(
            [{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False
        )
        return [output.outputs[0].token_ids for output in outputs]


def load(settings: dict[str, Any]) -> Engine:
    return Engine(settings)
