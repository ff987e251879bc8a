"""Models of transformers that are built at the same time, as ranks in threads do."""

from __future__ import annotations

import torch
from torch import nn

from tests.models.harness import config_for
from tests.models.ranks import on_ranks
from tests.models.test_ranks import References
from vllm.loader import load_model


def test_torch_is_as_it_was_after_models_were_built_in_threads(reference):
    before = {name: getattr(nn.init, name) for name in ("normal_", "zeros_", "uniform_")}
    config = config_for(reference("olmo2").path, model_impl="transformers")
    for _ in range(5):
        on_ranks(2, lambda tp: load_model(config, References(), torch.device("cpu"), tp))
    assert {name: getattr(nn.init, name) for name in before} == before
