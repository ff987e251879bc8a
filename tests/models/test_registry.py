import pytest
import torch

from tests.models.harness import config_for
from tools.tiny_models import random_checkpoint
from vllm.errors import ConfigError
from vllm.loader import load_model
from vllm.loader.architecture import resolve_model
from vllm.models import registry
from vllm.models.llama import Llama
from vllm.models.registry import ModelRegistry
from vllm.models.transformers_fallback import TransformersModel
from vllm.platforms.cpu import CpuPlatform


@pytest.fixture
def checkpoint(tmp_path):
    return lambda arch: random_checkpoint.make(arch, tmp_path / arch)


@pytest.fixture
def clean(monkeypatch):
    monkeypatch.setattr(registry, "_CLASSES", dict(registry._CLASSES))


def test_every_architecture_of_the_table_is_registered_by_its_module():
    for name in registry._MODULES:
        model = ModelRegistry.native(name)
        assert model is not None
        assert model.__module__ == f"vllm.models.{registry._MODULES[name]}"


def test_supported_architectures_are_listed():
    assert {"LlamaForCausalLM", "DeepseekV3ForCausalLM"} <= set(ModelRegistry.get_supported_archs())


@pytest.mark.parametrize("given", [Llama, "vllm.models.llama:Llama"])
def test_a_registered_class_serves_its_architecture(clean, checkpoint, given):
    ModelRegistry.register_model("Olmo2ForCausalLM", given)
    assert "Olmo2ForCausalLM" in ModelRegistry.get_supported_archs()
    assert resolve_model(config_for(checkpoint("olmo2")).model) is Llama


def test_a_class_given_as_text_must_name_its_module():
    with pytest.raises(ValueError, match="module:Class"):
        ModelRegistry.register_model("Any", "Llama")


def test_an_unknown_architecture_runs_through_transformers(checkpoint):
    assert resolve_model(config_for(checkpoint("olmo2")).model) is TransformersModel


def test_insisting_on_an_own_implementation_that_is_missing_is_refused(checkpoint):
    with pytest.raises(ConfigError, match=r"--model-impl vllm.*Olmo2ForCausalLM"):
        resolve_model(config_for(checkpoint("olmo2"), model_impl="vllm").model)


TINY = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "n_head": 2,
}


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        ("mamba", "cannot run MambaForCausalLM through transformers"),
        ("bloom", "cannot be exchanged"),
        ("rwkv", "cannot run RwkvForCausalLM through transformers"),
        ("gpt_oss", "cannot run GptOssForCausalLM through transformers: its attention takes s_aux"),
    ],
)
def test_a_model_transformers_cannot_run_our_way_is_refused_with_the_reason(
    tmp_path, model_type, reason
):
    from transformers import AutoConfig

    config = AutoConfig.for_model(model_type, **TINY)
    names = {"mamba": "Mamba", "bloom": "Bloom", "rwkv": "Rwkv", "gpt_oss": "GptOss"}
    config.architectures = [f"{names[model_type]}ForCausalLM"]
    config.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=reason):
        load_model(
            config_for(tmp_path, load_format="dummy", max_model_len=32),
            CpuPlatform(),
            torch.device("cpu"),
        )


def test_gpt_bigcode_with_a_kv_head_per_query_head_names_the_way_out(tmp_path):
    path = random_checkpoint.make("gpt_bigcode", tmp_path, multi_query=False)
    with pytest.raises(ConfigError, match=r"multi_query=false.*--model-impl transformers"):
        load_model(config_for(path), CpuPlatform(), torch.device("cpu"))
    load_model(config_for(path, model_impl="transformers"), CpuPlatform(), torch.device("cpu"))
