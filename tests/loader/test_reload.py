"""Weights that are loaded again in place give what a fresh start with them gives."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.loader.quantizing import FILE, quantized
from tests.loader.running import engine, tokens_of
from tools.tiny_models import random_checkpoint
from vllm import LLM
from vllm.engine.front_end import CallFailed

# Packed and gated, with biases, tied heads, experts, absorbed latent maps, other module trees.
ARCHITECTURES = ("llama", "granite", "gpt_bigcode", "gemma2", "mixtral", "deepseek_v3", "olmo2")


def reload(llm: LLM, path) -> None:
    llm.collective_rpc("reload_weights", args=(str(path),))
    llm.reset_prefix_cache()


@pytest.mark.engine
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_tokens_are_those_of_a_fresh_start(arch, tmp_path):
    first = random_checkpoint.make(arch, tmp_path / "first", seed=1)
    second = random_checkpoint.make(arch, tmp_path / "second", seed=2)
    llm = engine(first)
    before = tokens_of(llm)  # also captures the graphs of its decode steps
    addresses = llm.apply_model(_addresses)
    reload(llm, second)
    after = tokens_of(llm)
    assert after == tokens_of(engine(second)) != before
    assert llm.apply_model(_addresses) == addresses
    reload(llm, first)
    assert tokens_of(llm) == before


def _addresses(model) -> list[int]:
    return [t.data_ptr() for t in (*model.parameters(), *model.buffers())]


def test_gated_biases_are_packed_again(tmp_path):
    paths = [
        random_checkpoint.make("llama", tmp_path / str(seed), seed=seed, mlp_bias=True)
        for seed in (1, 2)
    ]
    llm = engine(paths[0])
    tokens_of(llm)
    reload(llm, paths[1])
    assert tokens_of(llm) == tokens_of(engine(paths[1]))


@pytest.mark.engine
@pytest.mark.parametrize(
    "options",
    [
        {"enforce_eager": True},
        {"model_impl": "transformers"},
        {"distributed_executor_backend": "mp"},
    ],
)
def test_in_every_way_of_running(options, tmp_path):
    first = random_checkpoint.make("llama", tmp_path / "first", seed=1)
    second = random_checkpoint.make("llama", tmp_path / "second", seed=2)
    llm = engine(first, **options)
    before = tokens_of(llm)
    reload(llm, second)
    assert tokens_of(llm) == tokens_of(engine(second, **options)) != before


@pytest.mark.engine
def test_quantized_weights_are_loaded_again(tmp_path):
    paths = [
        quantized(
            random_checkpoint.make("mixtral", tmp_path / f"p{seed}", seed=seed),
            tmp_path / f"q{seed}",
            "int",
        )
        for seed in (1, 2)
    ]
    llm = engine(paths[0])
    tokens_of(llm)
    reload(llm, paths[1])
    assert tokens_of(llm) == tokens_of(engine(paths[1]))


def test_what_does_not_fit_is_refused(tmp_path):
    path = random_checkpoint.make("llama", tmp_path / "first")
    llm = engine(path)
    before = tokens_of(llm)
    with pytest.raises(CallFailed, match=r"LoadError: no weights in"):
        reload(llm, tmp_path)
    other = random_checkpoint.make("llama", tmp_path / "other", hidden_size=32)
    with pytest.raises(CallFailed, match=r"LoadError: .*has shape"):
        reload(llm, other)
    with pytest.raises(CallFailed, match=r"LoadError: .*no place for .*weight_scale"):
        reload(llm, quantized(path, tmp_path / "quantized", "int"))
    with pytest.raises(CallFailed, match=r"LoadError: .*nowhere is not a directory"):
        reload(llm, tmp_path / "nowhere")
    llm.collective_rpc("reload_weights")  # what was loaded first
    assert tokens_of(llm) == before


def test_what_does_not_fit_in_its_last_tensor_changes_nothing(tmp_path):
    path = random_checkpoint.make("llama", tmp_path / "first")
    llm = engine(path)
    before = tokens_of(llm)
    other = random_checkpoint.make("llama", tmp_path / "other", seed=2)
    tensors = load_file(other / FILE)
    last = max(tensors)
    tensors[last] = tensors[last][:-1].contiguous()
    save_file(tensors, other / FILE)
    with pytest.raises(CallFailed, match=r"LoadError: .*has shape"):
        reload(llm, other)
    assert tokens_of(llm) == before


def test_random_weights_are_followed_by_real_ones(tmp_path):
    path = random_checkpoint.make("llama", tmp_path / "real")
    llm = engine(path, load_format="dummy")
    with pytest.raises(CallFailed, match=r"random .*give the path"):
        llm.collective_rpc("reload_weights")
    reload(llm, path)
    assert tokens_of(llm) == tokens_of(engine(path))


def test_a_head_that_the_model_ties_away_is_refused(tmp_path):
    path = random_checkpoint.make("gemma2", tmp_path / "tied")
    llm = engine(path)
    tensors = load_file(path / FILE)
    tensors["lm_head.weight"] = torch.randn_like(tensors["model.embed_tokens.weight"])
    save_file(tensors, path / FILE)
    with pytest.raises(CallFailed, match=r"LoadError: .*ties lm_head.weight"):
        reload(llm, path)
