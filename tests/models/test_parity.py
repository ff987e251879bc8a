"""Every architecture computes what transformers computes."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.models.harness import Harness, config_for
from tools.tiny_models import random_checkpoint
from vllm.loader import load_model
from vllm.platforms.cpu import CpuPlatform

LENGTHS = (1, 7, 16, 23, 40)
NEW_TOKENS = 48


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory):
    root = tmp_path_factory.mktemp("checkpoints")
    return cache(lambda arch: random_checkpoint.make(arch, root / arch))


def prompts(vocab_size: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, vocab_size, (n,), generator=generator).tolist() for n in LENGTHS]


def reference(path: Path, given: list[list[int]]) -> list[tuple[list[int], torch.Tensor]]:
    """Per prompt: greedy continuation, and the logits it was chosen from."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    results = []
    for prompt in given:
        out = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            max_new_tokens=NEW_TOKENS,
            return_dict_in_generate=True,
            output_logits=True,
        )
        results.append((out.sequences[0, len(prompt) :].tolist(), torch.cat(out.logits)))
    return results


FALLBACK = ["llama-dynamic-rope", "gemma2", "mixtral", "qwen3_moe", "deepseek_v3", "gpt_bigcode"]
CASES = [(arch, "auto") for arch in random_checkpoint.ARCHITECTURES]
CASES += [(arch, "transformers") for arch in FALLBACK]


@pytest.mark.parametrize(("arch", "model_impl"), CASES)
def test_greedy_text_and_logits_are_those_of_transformers(arch, model_impl, checkpoints):
    path = checkpoints(arch)
    config = config_for(path, model_impl=model_impl)
    given = prompts(config.model.vocab_size)
    expected = reference(path, given)
    model = load_model(config, CpuPlatform(), torch.device("cpu"))

    run = Harness(model, len(given))
    for row, prompt in enumerate(given):
        run.add(row, prompt)
    logits = [[] for _ in given]
    counts = list(LENGTHS)
    for _ in range(NEW_TOKENS):
        ends = torch.tensor(counts).cumsum(0) - 1
        scores = model.logits(run.step(counts)[ends])
        for row, token in enumerate(scores.argmax(-1).tolist()):
            run.add(row, [token])
            logits[row].append(scores[row])
        counts = [1] * len(given)

    for row, (tokens, reference_logits) in enumerate(expected):
        difference = (torch.stack(logits[row]) - reference_logits).abs().max().item()
        assert run.tokens[row][LENGTHS[row] :] == tokens, f"row {row}, difference {difference}"
        assert difference < 1e-4 * max(1.0, reference_logits.abs().max().item())
