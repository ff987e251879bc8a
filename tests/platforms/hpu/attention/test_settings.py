"""Which attention the environment and the model ask for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from vllm.config.vllm import VllmConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.envs import Environment
from vllm.errors import ConfigError
from vllm.platforms.hpu.attention.settings import (
    AttentionSettings,
    SliceSettings,
    attention_settings,
)

MODEL = Path(__file__).resolve().parents[4] / "examples" / "models" / "tiny-story"


@pytest.fixture(scope="module")
def config() -> VllmConfig:
    args = EngineArgs(str(MODEL), device="cpu", dtype="float32", max_num_batched_tokens=4096)
    return args.create_engine_config()


@pytest.fixture(autouse=True)
def eager(monkeypatch):
    monkeypatch.setenv("PT_HPU_LAZY_MODE", "0")


def settings(config: VllmConfig, **variables: str) -> AttentionSettings:
    return attention_settings(config, Environment(variables))


def of_type(config: VllmConfig, model_type: str) -> VllmConfig:
    hf_config = SimpleNamespace(model_type=model_type)
    return replace(config, model=replace(config.model, hf_config=hf_config))


def test_defaults_are_the_fused_kernel_and_a_softmax_in_the_dtype_of_the_model(config):
    assert settings(config) == AttentionSettings(dtype=torch.float32)


@pytest.mark.parametrize(
    ("model_type", "wide"), [("qwen2", True), ("qwen2_5_vl", True), ("llama", False)]
)
def test_models_with_large_scores_get_a_float32_softmax(config, model_type, wide):
    config = of_type(config, model_type)
    assert settings(config).fp32_softmax is wide
    assert settings(config, VLLM_FP32_SOFTMAX="0").fp32_softmax is False
    assert settings(config, VLLM_FP32_SOFTMAX="1").fp32_softmax is True


def test_the_kernel_for_prompts_can_be_chosen(config):
    assert settings(config, VLLM_PROMPT_USE_FUSEDSDPA="false").prompt == "naive"
    flex = {"VLLM_PROMPT_USE_FLEX_ATTENTION": "true"}
    assert settings(config, **flex).prompt == "flex"
    assert settings(config, **flex, VLLM_PROMPT_USE_FUSEDSDPA="0").prompt == "flex"
    with pytest.raises(ConfigError, match="ask for different kernels"):
        settings(config, **flex, VLLM_PROMPT_USE_FUSEDSDPA="1")


def test_flex_attention_is_refused_in_lazy_mode(config, monkeypatch):
    monkeypatch.setenv("PT_HPU_LAZY_MODE", "1")
    with pytest.raises(ConfigError, match="which lazy mode does not have"):
        settings(config, VLLM_PROMPT_USE_FLEX_ATTENTION="1")


def test_the_softmax_of_decode_can_be_chosen(config):
    found = settings(
        config,
        VLLM_FUSED_BLOCK_SOFTMAX="1",
        VLLM_FUSED_BLOCK_SOFTMAX_ADJUSTMENT="1",
        VLLM_SOFTMAX_CONST_NORM="1",
        VLLM_SOFTMAX_CONST_NORM_VALUE="7.5",
    )
    assert found.fused_block_softmax and found.fused_block_adjustment and found.const_norm == 7.5
    assert settings(config, VLLM_SOFTMAX_CONST_NORM="1").const_norm == 10.0


def test_pad_bucketing_slices_long_prefills(config):
    found = settings(config, VLLM_BUCKETING_STRATEGY="pad").slices
    assert found == SliceSettings(min_tokens=4096, chunk_tokens=2048)
    off = settings(config, VLLM_BUCKETING_STRATEGY="pad", VLLM_HPU_FSDPA_SLICE_ENABLED="0")
    assert off.slices is None


def test_slices_follow_their_variables(config):
    found = settings(
        config, VLLM_HPU_FSDPA_SLICE_ENABLED="1", VLLM_HPU_FSDPA_SLICE_SEQ_LEN_THLD="3000"
    ).slices
    assert found == SliceSettings(min_tokens=3000, chunk_tokens=2048)
    found = settings(
        config,
        VLLM_HPU_FSDPA_SLICE_ENABLED="1",
        VLLM_HPU_FSDPA_SLICE_CHUNK_SIZE="512",
        VLLM_HPU_FSDPA_SLICE_WITH_GRAPH_BREAKS="1",
    ).slices
    assert found == SliceSettings(min_tokens=4096, chunk_tokens=512, graph_breaks=True)


def test_the_window_of_the_kernel_needs_its_slicing(config):
    assert settings(config, VLLM_FUSEDSDPA_SLIDE_THLD="4096").kernel_slice_tokens == 0
    found = settings(config, PT_HPU_SDPA_QKV_SLICE_MODE_FWD="1", VLLM_FUSEDSDPA_SLIDE_THLD="4096")
    assert found.kernel_slice_tokens == 1024 and found.window_kernel_min_tokens == 4096
    with pytest.raises(ConfigError, match="PT_HPU_SDPA_BR_FACTOR='x'"):
        settings(config, PT_HPU_SDPA_QKV_SLICE_MODE_FWD="1", PT_HPU_SDPA_BR_FACTOR="x")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("VLLM_FUSEDSDPA_SLIDE_THLD", "0"),
        ("VLLM_HPU_FSDPA_SLICE_CHUNK_SIZE", "-1"),
        ("VLLM_SOFTMAX_CONST_NORM_VALUE", "nan"),
        ("VLLM_FP32_SOFTMAX", "maybe"),
        ("VLLM_MOE_CHUNK", "64,,128"),
        ("MAX_EXPERTS_PER_SLICE", "0"),
        ("VLLM_DEFRAG_THRESHOLD", "-3"),
    ],
)
def test_nonsense_in_a_variable_is_named(name, text):
    with pytest.raises(ConfigError, match=f"environment variable {name}="):
        Environment({name: text}).value(name)
