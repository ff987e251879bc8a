"""Small random checkpoints of every supported architecture, for parity tests.

    python -m tools.tiny_models.random_checkpoint ARCH OUT [--seed N] [--dtype float32]

Weights are drawn wide enough that greedy continuations vary and logits are well separated, and
norms, biases and router corrections are random, so that no term of a forward pass is trivially one
or zero. The same arguments give the same file.
"""

import argparse
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

TOKENIZER_DIR = Path(__file__).resolve().parents[2] / "examples" / "models" / "tiny-story"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
VOCAB_SIZE = 2048
BOS_ID, EOS_ID, PAD_ID = 0, 1, 2
MAX_POSITIONS = 512
WINDOW = 16


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to build one architecture: a transformers model type and its config fields."""

    model_type: str
    fields: Mapping[str, Any] = field(default_factory=dict)


_DENSE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def _dense(model_type: str, **fields: Any) -> Recipe:
    return Recipe(model_type, {**_DENSE, **fields})


def _rope(rope_type: str, **fields: Any) -> dict[str, Any]:
    return {"rope_type": rope_type, "rope_theta": 10000.0, **fields}


# Original lengths sit well below MAX_POSITIONS, so that a test with a few dozen tokens already
# passes the point where scaling changes the frequencies.
_YARN = _rope(
    "yarn",
    factor=8.0,
    original_max_position_embeddings=64,
    beta_fast=32.0,
    beta_slow=1.0,
)
_DEEPSEEK_YARN = {**_YARN, "mscale": 0.707, "mscale_all_dim": 0.707}
_MLA: dict[str, Any] = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
}
_DEEPSEEK_MOE: dict[str, Any] = {
    **_MLA,
    "num_hidden_layers": 4,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 32,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "num_experts_per_tok": 3,
}

_RECIPES: dict[str, Recipe] = {
    "llama": _dense("llama"),
    "llama3-rope": _dense(
        "llama",
        rope_parameters=_rope(
            "llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=64,
        ),
    ),
    "llama-linear-rope": _dense("llama", rope_parameters=_rope("linear", factor=4.0)),
    "llama-dynamic-rope": _dense(
        "llama", max_position_embeddings=64, rope_parameters=_rope("dynamic", factor=4.0)
    ),
    "llama-yarn-rope": _dense("llama", rope_parameters=_YARN),
    "mistral": _dense("mistral", sliding_window=WINDOW, head_dim=16),
    "granite": _dense(
        "granite",
        embedding_multiplier=3.0,
        residual_multiplier=0.6,
        attention_multiplier=0.15,
        logits_scaling=1.7,
    ),
    "gpt_bigcode": Recipe(
        "gpt_bigcode",
        {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_inner": 128, "multi_query": True},
    ),
    "qwen2": _dense("qwen2"),
    "qwen3": _dense("qwen3", head_dim=32),
    "gemma2": _dense(
        "gemma2",
        num_hidden_layers=4,
        head_dim=32,
        query_pre_attn_scalar=24,
        sliding_window=WINDOW,
        attn_logit_softcapping=10.0,
        final_logit_softcapping=15.0,
    ),
    "mixtral": _dense("mixtral", num_local_experts=4, num_experts_per_tok=2),
    "qwen3_moe": _dense(
        "qwen3_moe",
        head_dim=32,
        moe_intermediate_size=32,
        num_experts=8,
        num_experts_per_tok=2,
        norm_topk_prob=True,
        mlp_only_layers=[1],
    ),
    "deepseek_v2": _dense(
        "deepseek_v2",
        **_DEEPSEEK_MOE,
        q_lora_rank=24,
        topk_method="group_limited_greedy",
        n_group=4,
        topk_group=2,
        routed_scaling_factor=1.5,
        rope_parameters=_DEEPSEEK_YARN,
    ),
    "deepseek_v2_lite": _dense(
        "deepseek_v2", **_DEEPSEEK_MOE, q_lora_rank=None, topk_method="greedy"
    ),
    "deepseek_v3": _dense(
        "deepseek_v3",
        **{**_DEEPSEEK_MOE, "n_shared_experts": 1},
        q_lora_rank=24,
        n_group=4,
        topk_group=2,
        norm_topk_prob=True,
        routed_scaling_factor=2.5,
        num_nextn_predict_layers=0,
        rope_parameters={**_DEEPSEEK_YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
    ),
    "olmo2": _dense("olmo2"),
    "phi3": _dense("phi3"),
}
ARCHITECTURES: list[str] = list(_RECIPES)


def build(arch: str, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """The model `make` would save, in float32.

    Args:
        overrides: config fields that replace the recipe's.

    Raises:
        ValueError: `arch` is not one of `ARCHITECTURES`.
    """
    if arch not in _RECIPES:
        raise ValueError(f"unknown architecture {arch!r}; choose one of {', '.join(ARCHITECTURES)}")
    recipe = _RECIPES[arch]
    fields = {
        "vocab_size": VOCAB_SIZE,
        "max_position_embeddings": MAX_POSITIONS,
        "initializer_range": 0.2,
        "bos_token_id": BOS_ID,
        "eos_token_id": EOS_ID,
        "pad_token_id": PAD_ID,
        **recipe.fields,
        **overrides,
    }
    if recipe.model_type == "gpt_bigcode":
        fields["n_positions"] = fields.pop("max_position_embeddings")
    config = AutoConfig.for_model(recipe.model_type, **fields)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    _randomise(model, seed)
    return model.eval()


@torch.no_grad()
def _randomise(model: PreTrainedModel, seed: int) -> None:
    """Redraw every parameter from `seed`, in the order of `named_parameters`."""
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor: torch.Tensor, std: float) -> None:
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * std)

    for name, parameter in model.named_parameters():
        normal(parameter, model.config.initializer_range)
        if parameter.dim() > 1:
            continue
        if name.endswith("weight") and model.config.model_type != "gemma2":
            parameter.add_(1.0)  # norms; Gemma adds the one itself
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            normal(buffer, 0.2)
    if model.config.tie_word_embeddings:
        # A tied head scores the token just read highest, and greedy text would repeat one token.
        # Random signs on the last norm break that likeness.
        names = (".norm.weight", ".ln_f.weight")
        last_norm = next(p for n, p in model.named_parameters() if n.endswith(names))
        signs = torch.randint(0, 2, last_norm.shape, generator=generator) * 2.0 - 1.0
        offset = 1.0 if model.config.model_type == "gemma2" else 0.0
        last_norm.copy_((last_norm + offset) * signs - offset)


def make(
    arch: str, out: Path, seed: int = 0, dtype: torch.dtype = torch.float32, **overrides: Any
) -> Path:
    """Write a random checkpoint with weights, config and the tiny-story tokenizer to `out`.

    Returns `out`, which is created and holds `model.safetensors`, `config.json`,
    `generation_config.json` and the tokenizer files.
    """
    model = build(arch, seed, **overrides).to(dtype)
    model.config.dtype = dtype
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out)
    for name in TOKENIZER_FILES:
        shutil.copyfile(TOKENIZER_DIR / name, out / name)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description="write a small random checkpoint")
    parser.add_argument("arch", choices=ARCHITECTURES, help="architecture to build")
    parser.add_argument("out", type=Path, help="directory to write to")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same weights")
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "float16"],
        default="float32",
        help="dtype of the stored weights",
    )
    args = parser.parse_args()
    path = make(args.arch, args.out, args.seed, getattr(torch, args.dtype))
    print(f"{args.arch}: {path}")


if __name__ == "__main__":
    main()
