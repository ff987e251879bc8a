"""What is read without transformers says what its classes would say."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from vllm.transformers_utils.plain_config import plain_config

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "max_position_embeddings": 512,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "bos_token_id": 0,
    "eos_token_id": [1, 2],
    "architectures": ["SomeForCausalLM"],
}
LLAMA = {"model_type": "llama", **SIZES}
QWEN2 = {"model_type": "qwen2", **SIZES}
QWEN3 = {"model_type": "qwen3", "head_dim": 32, **SIZES}
MOE = {
    "model_type": "qwen3_moe",
    "head_dim": 32,
    "moe_intermediate_size": 32,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "norm_topk_prob": True,
    **SIZES,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 32.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 256,
}

READ: list[dict[str, Any]] = [
    LLAMA,
    LLAMA | {"rope_theta": 5e5, "rope_scaling": LLAMA3_ROPE, "torch_dtype": "bfloat16"},
    LLAMA | {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_theta": 10000},
    LLAMA | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "dtype": "float16"},
    LLAMA | {"rope_scaling": None, "head_dim": 16, "mlp_bias": True, "tie_word_embeddings": True},
    LLAMA | {"output_router_logits": False, "_name_or_path": "x", "transformers_version": "5.0"},
    QWEN2,
    QWEN2 | {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 2},
    QWEN2 | {"use_sliding_window": False, "sliding_window": 16, "max_window_layers": 2},
    QWEN2 | {"layer_types": ["full_attention", "sliding_attention", "full_attention"]},
    QWEN3 | {"rope_theta": 1000000, "rms_norm_eps": 1e-5, "attention_bias": True},
    QWEN3 | {"use_sliding_window": True, "sliding_window": None, "max_window_layers": 3},
    MOE,
    MOE | {"mlp_only_layers": [1], "decoder_sparse_step": 2, "rope_theta": 5e6},
]


@pytest.mark.parametrize("raw", READ, ids=range(len(READ)))
def test_values_are_those_of_transformers(raw: dict[str, Any]) -> None:
    ours = plain_config(raw)
    theirs = CONFIG_MAPPING[raw["model_type"]].from_dict(copy.deepcopy(raw))
    assert ours is not None
    facts = theirs.to_dict()
    for name, value in ours.to_dict().items():
        if name in ("transformers_version", "_name_or_path"):  # of whoever wrote it
            continue
        # Some attributes have another name in the dictionary.
        expected = facts[name] if name in facts else getattr(theirs, name)
        assert value == expected, name
    for name in {*raw, "layer_types", "rope_parameters", "sliding_window", "dtype"} & facts.keys():
        if name == "transformers_version":
            continue
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ours.full().to_dict() == facts


DECLINED: list[dict[str, Any]] = [
    {},
    LLAMA | {"model_type": "gemma2"},
    LLAMA | {"quantization_config": {"quant_method": "fp8"}},
    LLAMA | {"auto_map": {"AutoConfig": "x.Y"}},
    LLAMA | {"hidden_size": "64"},
    LLAMA | {"hidden_size": 66},
    LLAMA | {"rms_norm_eps": "1e-6"},
    LLAMA | {"attention_bias": 1},
    LLAMA | {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
    LLAMA | {"rope_parameters": {"full_attention": {"rope_theta": 1.0}}},
    LLAMA | {"torch_dtype": "float8_e4m3fn"},
    LLAMA | {"architectures": None},
    {name: value for name, value in LLAMA.items() if name != "eos_token_id"},
    {name: value for name, value in QWEN3.items() if name != "head_dim"},
    QWEN3 | {"layer_types": ["full_attention"]},
    QWEN3 | {"layer_types": ["full_attention", "full_attention", "chunked_attention"]},
    QWEN3 | {"num_labels": 3},
]


@pytest.mark.parametrize("raw", DECLINED, ids=range(len(DECLINED)))
def test_what_leaves_a_doubt_is_left_to_transformers(raw: dict[str, Any]) -> None:
    assert plain_config(raw) is None


def test_other_attributes_are_asked_of_transformers() -> None:
    config = plain_config(QWEN3)
    assert config is not None
    assert config.num_labels == 2
    with pytest.raises(AttributeError):
        _ = config.no_such_thing


def test_it_can_be_copied_and_sent() -> None:
    config = plain_config(QWEN3 | {"torch_dtype": "bfloat16"})
    assert config is not None
    config.sliding_window = 7
    sent = pickle.loads(pickle.dumps(config))
    copied = copy.deepcopy(config)
    config.layer_types[0] = "changed"
    for other in (sent, copied):
        assert other.sliding_window == 7
        assert other.layer_types[0] == "full_attention"
        assert other.dtype == torch.bfloat16
