"""The shipped models: their shapes and how each is trained."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import LlamaConfig, MixtralConfig, PreTrainedConfig

from tools.tiny_models.tokenizer import BOS_ID, EOS_ID, PAD_ID, VOCAB_SIZE


@dataclass(frozen=True, slots=True)
class Recipe:
    """One model. Training reads `num_steps` batches of `rows` sequences of 512 tokens.

    The last `long_share` of the steps use half as many sequences of 1024 tokens, so that late
    positions are trained too. In the first `copying_share` every fourth sequence is an exercise in
    copying.
    """

    name: str
    title: str
    config: Callable[[], PreTrainedConfig]
    num_steps: int
    rows: int = 4
    peak_lr: float = 4e-3
    warmup_steps: int = 100
    long_share: float = 0.2
    copying_share: float = 0.15
    seed: int = 1


_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
    "initializer_range": 0.05,
    "bos_token_id": BOS_ID,
    "eos_token_id": EOS_ID,
    "pad_token_id": PAD_ID,
}


def _story() -> PreTrainedConfig:
    return LlamaConfig(
        **_COMMON,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
    )


def _draft() -> PreTrainedConfig:
    return LlamaConfig(
        **_COMMON,
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
    )


def _moe() -> PreTrainedConfig:
    return MixtralConfig(
        **_COMMON,
        hidden_size=96,
        intermediate_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        num_local_experts=8,
        num_experts_per_tok=2,
        router_aux_loss_coef=0.01,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )


RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe("tiny-story", "Llama, grouped-query attention", _story, num_steps=2400),
        Recipe("tiny-story-draft", "Llama, draft for tiny-story", _draft, num_steps=2400),
        Recipe("tiny-moe", "mixture of experts, top 2 of 8", _moe, num_steps=2000),
    )
}
