"""A model without attention, hence without a KV cache: what it draws depends on the last token and
its position alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from tools.tiny_models.random_checkpoint import TOKENIZER_DIR, TOKENIZER_FILES
from vllm.device.attention import AttentionMetas
from vllm.device.launch import ForwardInputs
from vllm.layers.context import ModelContext
from vllm.layers.embedding import Embedding, Head
from vllm.layers.mlp import MLP
from vllm.layers.weights import Rule
from vllm.models.interfaces import Model
from vllm.models.registry import ModelRegistry

ARCHITECTURE = "CachelessForCausalLM"
VOCAB, HIDDEN, INNER, LAYERS, POSITIONS = 2048, 32, 64, 3, 128
CONFIG = {
    "architectures": [ARCHITECTURE],
    "model_type": "llama",
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "max_position_embeddings": POSITIONS,
    "torch_dtype": "float32",
}


class Cacheless(Model):
    weights = (
        Rule("words.weight", "words.weight"),
        Rule("places.weight", "places.weight"),
        Rule("mlp.{layer}.up.{w}", "layers.{layer}.up.{w}"),
        Rule("mlp.{layer}.down.{w}", "layers.{layer}.down.{w}"),
        Rule("head.{w}", "head.{w}"),
    )

    def __init__(self, context: ModelContext) -> None:
        super().__init__(context)
        self.words = Embedding(VOCAB, HIDDEN, context)
        self.places = Embedding(POSITIONS, HIDDEN, context)
        self.layers = nn.ModuleList(MLP(HIDDEN, INNER, "relu", context) for _ in range(LAYERS))
        self.head = Head(VOCAB, HIDDEN, context)

    def forward(self, inputs: ForwardInputs, metas: AttentionMetas) -> Tensor:
        x = self.words(inputs.token_ids) + self.places(inputs.positions)
        for mlp in self.layers:
            x = x + mlp(x)
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        return self.head(hidden)


def make(path: Path) -> Path:
    """Write a random checkpoint, and register its architecture in this process."""
    ModelRegistry.register_model(ARCHITECTURE, Cacheless)
    path.mkdir(parents=True, exist_ok=True)
    shapes = {
        "words.weight": (VOCAB, HIDDEN),
        "places.weight": (POSITIONS, HIDDEN),
        "head.weight": (VOCAB, HIDDEN),
        **{f"mlp.{i}.up.weight": (INNER, HIDDEN) for i in range(LAYERS)},
        **{f"mlp.{i}.down.weight": (HIDDEN, INNER) for i in range(LAYERS)},
    }
    generator = torch.Generator().manual_seed(5)
    weights = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    save_file(weights, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(CONFIG))
    for name in TOKENIZER_FILES:
        shutil.copy(TOKENIZER_DIR / name, path)
    return path


def greedy(path: Path, prompts: Sequence[list[int]], num_tokens: int) -> list[list[int]]:
    """Continuations of the checkpoint, in plain torch."""
    weights = load_file(path / "model.safetensors")

    def following(token: int, position: int) -> int:
        x = weights["words.weight"][token] + weights["places.weight"][position]
        for i in range(LAYERS):
            up, down = (weights[f"mlp.{i}.{name}.weight"] for name in ("up", "down"))
            x = x + functional.linear(functional.linear(x, up).relu(), down)
        return int(functional.linear(x, weights["head.weight"]).argmax())

    def continued(prompt: list[int]) -> list[int]:
        tokens = list(prompt)
        while len(tokens) < len(prompt) + num_tokens:
            tokens.append(following(tokens[-1], len(tokens) - 1))
        return tokens[len(prompt) :]

    return [continued(prompt) for prompt in prompts]


def facts_of(llm: Any) -> tuple[int, int, float]:
    """(blocks, bytes of cache, usage) of an engine."""
    core = llm.llm_engine.client.core
    return (
        core.ready.num_blocks,
        core.ready.ranks[0].kv_cache,
        core.scheduler.snapshot().kv_usage,
    )
