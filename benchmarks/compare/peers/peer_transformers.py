"""Adapter of transformers: one static batch, so prompts of one call have one length."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM


class Engine:
    def __init__(self, settings: dict[str, Any]) -> None:
        torch.set_num_threads(settings["threads"])
        self.model = AutoModelForCausalLM.from_pretrained(
            settings["model"], dtype=torch.bfloat16, attn_implementation="sdpa"
        ).eval()

    @torch.inference_mode()
    def generate(self, prompts: list[list[int]], max_tokens: int) -> list[list[int]]:
        ids = torch.tensor(prompts)
        output = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            # At least as many as at most: the end token is ruled out.
            min_new_tokens=max_tokens,
            max_new_tokens=max_tokens,
            pad_token_id=0,
        )
        return [row.tolist() for row in output[:, ids.shape[1] :]]


def load(settings: dict[str, Any]) -> Engine:
    return Engine(settings)
