from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from tools.tiny_models import random_checkpoint

LENGTHS = (1, 5, 7, 12, 16, 17, 23, 40)
NEW_TOKENS = 48


@dataclass(frozen=True, slots=True)
class Reference:
    """What transformers makes of a random checkpoint, prompt by prompt."""

    path: Path
    prompts: list[list[int]]
    tokens: list[list[int]]  # greedy continuations
    logits: list[Tensor]  # [NEW_TOKENS, V] each, from which they were chosen


def generate(path: Path, lengths: Sequence[int] = LENGTHS) -> Reference:
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    generator = torch.Generator().manual_seed(1)
    vocab_size = model.config.vocab_size
    prompts = [torch.randint(3, vocab_size, (n,), generator=generator).tolist() for n in lengths]
    tokens, logits = [], []
    for prompt in prompts:
        out = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            max_new_tokens=NEW_TOKENS,
            return_dict_in_generate=True,
            output_logits=True,
        )
        tokens.append(out.sequences[0, len(prompt) :].tolist())
        logits.append(torch.cat(out.logits))
    return Reference(path, prompts, tokens, logits)


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory):
    """Reference of an architecture of random_checkpoint, made once per session."""
    root = tmp_path_factory.mktemp("checkpoints")
    return cache(lambda arch: generate(random_checkpoint.make(arch, root / arch)))
