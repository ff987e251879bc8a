"""A token's hidden state does not depend on how its launch was cut."""

from __future__ import annotations

import pytest
import torch

from tests.models.harness import Harness, config_for
from tools.tiny_models import random_checkpoint
from vllm.loader import load_model
from vllm.platforms.cpu import CpuPlatform

ARCHITECTURES = ["llama-dynamic-rope", "mistral", "gemma2", "mixtral", "deepseek_v3", "phi3"]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_chunks_mixed_with_other_rows_compute_what_a_whole_prompt_does(arch, tmp_path):
    path = random_checkpoint.make(arch, tmp_path)
    model = load_model(config_for(path), CpuPlatform(), torch.device("cpu"))
    generator = torch.Generator().manual_seed(3)
    prompts = [torch.randint(3, 2048, (n,), generator=generator).tolist() for n in (90, 21)]

    whole = []
    for prompt in prompts:
        run = Harness(model, 1)
        run.add(0, prompt)
        whole.append(run.step([len(prompt)]))

    run = Harness(model, 2)
    run.add(0, prompts[0])
    run.add(1, prompts[1])
    pieces: list[list[torch.Tensor]] = [[], []]
    for counts in ([17, 0], [16, 20], [40, 1], [1, 0], [16, 0]):
        for row, hidden in enumerate(run.step(counts).split(counts)):
            pieces[row].append(hidden)

    for row in range(2):
        torch.testing.assert_close(torch.cat(pieces[row]), whole[row], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("arch", ["llama", "gemma2", "deepseek_v2", "qwen3_moe", "gpt_bigcode"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_narrow_dtype_gives_nearly_the_same_hidden_states(arch, dtype, tmp_path):
    # Narrow weights: with those of the parity tests, scores are so far apart that rounding
    # changes which token is attended to.
    path = random_checkpoint.make(arch, tmp_path, initializer_range=0.05)
    hidden = []
    for name in ("float32", dtype):
        model = load_model(config_for(path, dtype=name), CpuPlatform(), torch.device("cpu"))
        run = Harness(model, 1)
        run.add(0, range(10, 40))
        hidden.append(run.step([30]).float())
    assert model.logits(hidden[1].to(model.embed.weight.dtype)).dtype == torch.float32
    similarity = torch.cosine_similarity(*hidden, dim=-1)
    assert similarity.mean() > 0.99
