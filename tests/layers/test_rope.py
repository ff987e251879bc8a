from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from vllm.errors import ConfigError
from vllm.layers.rope import RopeParameters, Rotary
from vllm.layers.rope.table import tabulate

HEAD_DIM, LENGTH = 16, 200
YARN = {"factor": 4.0, "original_max_position_embeddings": 64}
LONG = {
    "original_max_position_embeddings": 64,
    "short_factor": [1.0 + i / 8 for i in range(8)],
    "long_factor": [1.0 + i for i in range(8)],
}
SCALINGS = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": {"rope_type": "yarn", **YARN},
    "yarn-betas": {"rope_type": "yarn", "beta_fast": 20.0, "beta_slow": 2.0, **YARN},
    "yarn-untruncated": {"rope_type": "yarn", "truncate": False, **YARN},
    "yarn-factor": {"rope_type": "yarn", "attention_factor": 1.5, **YARN},
    "yarn-mscale": {"rope_type": "yarn", "mscale": 0.7, "mscale_all_dim": 0.9, **YARN},
    "longrope": {"rope_type": "longrope", **LONG},
    "longrope-factor": {"rope_type": "longrope", "factor": 8.0, "attention_factor": 1.2, **LONG},
}


def llama_config(scaling: dict) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=64,
        num_attention_heads=4,
        max_position_embeddings=256,
        rope_parameters={"rope_theta": 50000.0, **scaling},
    )


def theirs(config: LlamaConfig, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1), positions[None])
    half = cos.shape[-1] // 2
    return cos[0, :, :half], sin[0, :, :half]


@pytest.mark.parametrize("name", SCALINGS)
def test_tables_are_those_of_transformers(name):
    config = llama_config(SCALINGS[name])
    parameters = RopeParameters.from_config(config, HEAD_DIM)
    ours = tabulate(parameters, LENGTH)
    for mine, reference in zip(ours, theirs(config, torch.arange(LENGTH)), strict=True):
        torch.testing.assert_close(mine, reference, rtol=0, atol=2e-6)


def test_dynamic_scaling_rotates_a_position_as_the_last_of_its_context():
    config = llama_config({"rope_type": "dynamic", "factor": 4.0})
    config.max_position_embeddings = 64
    cos, _ = tabulate(RopeParameters.from_config(config, HEAD_DIM), LENGTH)
    whole = theirs(config, torch.arange(64))[0]
    torch.testing.assert_close(cos[:64], whole, rtol=0, atol=2e-6)
    for position in (64, 100, 199):
        alone = theirs(config, torch.tensor([position]))[0]
        torch.testing.assert_close(cos[position : position + 1], alone, rtol=0, atol=2e-5)


def test_longrope_keeps_the_short_factors_when_the_served_length_is_the_original():
    config = llama_config(SCALINGS["longrope"])
    cos, _ = tabulate(RopeParameters.from_config(config, HEAD_DIM), 64)
    torch.testing.assert_close(cos, theirs(config, torch.arange(64))[0], rtol=0, atol=2e-6)


@pytest.mark.parametrize("key", ["type", "rope_type"])
def test_older_configs_mean_the_same(key):
    facts = {
        "rope_theta": 50000.0,
        "rope_scaling": {key: "linear", "factor": 4.0},
        "max_position_embeddings": 256,
    }
    old = RopeParameters.from_config(SimpleNamespace(to_dict=lambda: facts), HEAD_DIM)
    assert old == RopeParameters.from_config(llama_config(SCALINGS["linear"]), HEAD_DIM)


def test_only_a_share_of_the_head_is_rotated_where_the_config_says_so(make_context):
    config = llama_config({"rope_type": "default", "partial_rotary_factor": 0.5})
    rotary = Rotary(RopeParameters.from_config(config, HEAD_DIM), make_context())
    q, k = torch.randn(5, 4, HEAD_DIM), torch.randn(5, 2, HEAD_DIM)
    rope = rotary(torch.arange(5, dtype=torch.int32))
    turned_q, turned_k = rotary.apply(q, k, rope)
    assert torch.equal(turned_q[..., 8:], q[..., 8:])
    assert torch.equal(turned_k[..., 8:], k[..., 8:])
    assert not torch.allclose(turned_q[1:, :, :8], q[1:, :, :8])


@pytest.mark.parametrize(
    ("scaling", "named"),
    [
        ({"rope_type": "spiral"}, "spiral"),
        ({"rope_type": "linear"}, "factor"),
        ({"rope_type": "longrope", **LONG, "long_factor": [1.0]}, "long_factor"),
    ],
)
def test_a_config_that_cannot_be_followed_is_refused_naming_the_field(scaling, named):
    facts = {"rope_scaling": scaling, "max_position_embeddings": 256}
    with pytest.raises(ConfigError, match=named):
        tabulate(
            RopeParameters.from_config(SimpleNamespace(to_dict=lambda: facts), HEAD_DIM), LENGTH
        )
