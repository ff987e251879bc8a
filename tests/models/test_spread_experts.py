"""Copies of a model that share its experts write what one with all experts writes."""

from __future__ import annotations

import pytest
import torch

from tests.models.harness import config_for
from tests.models.ranks import InThread, on_ranks
from tests.models.test_parity import assert_same_text_and_logits
from tests.models.test_ranks import References
from vllm.device.agreement import AgreedTokens
from vllm.layers.dispatch import ExpertRanks
from vllm.layers.moe import SpreadMoE
from vllm.loader import load_model


@pytest.mark.parametrize("name", ["", "allgather_reducescatter", "deepep_low_latency"])
@pytest.mark.parametrize("arch", ["mixtral", "qwen3_moe", "deepseek_v3"])
def test_text_and_logits_are_those_of_transformers(arch, name, reference):
    expected = reference(arch)
    config = config_for(
        expected.path, data_parallel_size=4, enable_expert_parallel=True, all2all_backend=name
    )

    def run(rank: InThread) -> None:
        experts = ExpertRanks(rank, AgreedTokens())
        model = load_model(config, References(), torch.device("cpu"), experts=experts)
        assert any(isinstance(module, SpreadMoE) for module in model.modules())
        assert_same_text_and_logits(model, expected)

    on_ranks(4, run)
