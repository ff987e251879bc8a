"""Every architecture computes what transformers computes."""

from __future__ import annotations

import pytest
import torch

from tests.models.conftest import Reference, generate
from tests.models.harness import Harness, config_for
from tools.tiny_models import random_checkpoint
from vllm.config.vllm import VllmConfig
from vllm.loader import load_model
from vllm.models.interfaces import Model
from vllm.ops import REFERENCES
from vllm.platforms.base import Platform
from vllm.platforms.cpu import CpuPlatform

FALLBACK = ["llama-dynamic-rope", "gemma2", "mixtral", "qwen3_moe", "deepseek_v3", "gpt_bigcode"]
CASES = [(arch, "auto") for arch in random_checkpoint.ARCHITECTURES]
CASES += [(arch, "transformers") for arch in FALLBACK]


def loaded(config: VllmConfig, platform: Platform | None = None) -> Model:
    return load_model(config, platform or CpuPlatform(), torch.device("cpu"))


def assert_same_text_and_logits(model: Model, expected: Reference) -> None:
    """Runs all prompts together; every row must give the expected tokens from close logits."""
    run = Harness(model, len(expected.prompts))
    for row, prompt in enumerate(expected.prompts):
        run.add(row, prompt)
    counts = [len(prompt) for prompt in expected.prompts]
    logits = []
    for _ in expected.tokens[0]:
        ends = torch.tensor(counts).cumsum(0) - 1
        hidden = run.step(counts)[ends]
        logits.append(model.logits(hidden))
        likeliest = model.greatest(hidden)
        assert likeliest is None or torch.equal(likeliest, REFERENCES["greatest"](logits[-1]))
        for row, token in enumerate(logits[-1].argmax(-1).tolist()):
            run.add(row, [token])
        counts = [1] * len(counts)

    ours = torch.stack(logits, dim=1)  # [rows, steps, V]
    for row, (prompt, tokens) in enumerate(zip(expected.prompts, expected.tokens, strict=True)):
        difference = (ours[row] - expected.logits[row]).abs().max().item()
        assert run.tokens[row][len(prompt) :] == tokens, f"row {row}, difference {difference}"
        assert difference < 1e-4 * max(1.0, expected.logits[row].abs().max().item())


@pytest.mark.parametrize(("arch", "model_impl"), CASES)
def test_greedy_text_and_logits_are_those_of_transformers(arch, model_impl, reference):
    expected = reference(arch)
    assert_same_text_and_logits(loaded(config_for(expected.path, model_impl=model_impl)), expected)


# With fewer tokens than the original length served, transformers uses the short factors for every
# request; a request that starts beyond it has the long ones from its first token.
@pytest.mark.parametrize(("lengths", "max_model_len"), [((1, 9, 16), 64), ((65, 70), 128)])
@pytest.mark.parametrize("arch", ["phi3", "llama"])
def test_longrope_serves_short_and_long_contexts(arch, lengths, max_model_len, tmp_path):
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "original_max_position_embeddings": 64,
        "short_factor": [1.0 + i / 8 for i in range(8)],
        "long_factor": [1.0 + i for i in range(8)],
    }
    path = random_checkpoint.make(
        arch, tmp_path, rope_parameters=rope, original_max_position_embeddings=64
    )
    config = config_for(path, max_model_len=max_model_len)
    assert_same_text_and_logits(loaded(config), generate(path, lengths))
