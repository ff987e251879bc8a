"""Several ranks write what one writes: a share of every layer each, completed once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from transformers import LlamaConfig

from tests.loader.quantizing import quantized, rounded
from tests.models.conftest import Reference, generate
from tests.models.harness import config_for
from tests.models.ranks import InThread, on_ranks
from tests.models.test_parity import assert_same_text_and_logits
from tests.ops.overrides import isas
from tools.tiny_models import random_checkpoint
from vllm.config.vllm import VllmConfig
from vllm.device.attention import AttentionBackend
from vllm.device.collectives import Imagined
from vllm.errors import ConfigError
from vllm.layers.methods import DeviceMethods
from vllm.loader import load_model
from vllm.ops.registry import Ops
from vllm.platforms.base import Platform
from vllm.platforms.cpu import CpuPlatform
from vllm.platforms.cpu.attention import TorchAttention

FOREIGN = {"olmo2", "phi3"}  # run through transformers
ARCHITECTURES = [arch for arch in random_checkpoint.ARCHITECTURES if arch not in FOREIGN]


class References(CpuPlatform):
    """Torch's ops, and weights as they are."""

    def ops(self) -> Mapping[str, Callable[..., Any]]:
        return {}

    def attention_backends(self, config: VllmConfig) -> Sequence[AttentionBackend]:
        return (TorchAttention(),)

    def weight_methods(self, ops: Ops) -> DeviceMethods:
        return Platform.weight_methods(self, ops)


def assert_ranks_agree(
    size: int, expected: Reference, platform: Platform, **settings: object
) -> None:
    """Each of `size` ranks gives the text and the logits that are expected."""
    config = config_for(expected.path, **settings)

    def run(tp: InThread) -> None:
        model = load_model(config, platform, torch.device("cpu"), tp)
        assert_same_text_and_logits(model, expected)

    on_ranks(size, run)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_text_and_logits_are_those_of_transformers(arch, size, reference):
    assert_ranks_agree(size, reference(arch), References())


@pytest.mark.skipif(not isas(), reason="the kernels were not built")
@pytest.mark.parametrize("arch", ["llama", "gemma2", "mixtral", "deepseek_v3"])
def test_packed_weights_are_shared_too(arch, reference):
    assert_ranks_agree(2, reference(arch), CpuPlatform())


@pytest.mark.parametrize("arch", ["gpt_bigcode", "mixtral", "deepseek_v3"])
@pytest.mark.parametrize("kind", ["int", "float"])
def test_quantized_weights_are_shared_too(arch, kind, tmp_path):
    path = random_checkpoint.make(arch, tmp_path / "plain")
    expected = generate(rounded(path, tmp_path / "rounded", kind), (5, 17))
    given = Reference(
        quantized(path, tmp_path / "quantized", kind),
        expected.prompts,
        expected.tokens,
        expected.logits,
    )
    assert_ranks_agree(2, given, References())


def test_every_number_of_ranks_that_an_error_names_works(tmp_path):
    """Of 12 heads, 4 KV heads (which may repeat) and 352 columns."""
    path = random_checkpoint.make(
        "llama",
        tmp_path / "llama",
        hidden_size=96,
        num_attention_heads=12,
        num_key_value_heads=4,
        intermediate_size=352,
    )
    for size in (3, 5):
        config, cpu = config_for(path), torch.device("cpu")
        with pytest.raises(ConfigError, match=rf"size {size} does not .* one of 1, 2, 4\.$"):
            load_model(config, References(), cpu, Imagined(size))
    for size in (2, 4):
        assert_ranks_agree(size, generate(path, (5, 17)), References())


def test_a_vocabulary_that_does_not_divide_is_padded(tmp_path):
    """Four ranks have 64 rows each of 150: the third a few, the last none."""
    for i, (arch, rows) in enumerate((("llama", 150), ("gemma2", 150), ("llama", 64))):
        path = random_checkpoint.make(arch, tmp_path / str(i), vocab_size=rows)
        assert_ranks_agree(4, generate(path, (5, 17)), References())


def test_ranks_without_a_row_of_a_quantized_head(tmp_path):
    path = random_checkpoint.make("llama", tmp_path / "plain", vocab_size=100)
    expected = generate(rounded(path, tmp_path / "rounded", "int", ()), (5, 17))
    made = quantized(path, tmp_path / "quantized", "int", ())
    given = Reference(made, expected.prompts, expected.tokens, expected.logits)
    assert_ranks_agree(4, given, References())


def test_biases_are_added_once(tmp_path):
    path = random_checkpoint.make("llama", tmp_path / "b", attention_bias=True, mlp_bias=True)
    for platform in (References(), CpuPlatform()):
        assert_ranks_agree(2, generate(path, (5, 17)), platform)


def test_random_weights_do_not_depend_on_the_number_of_ranks(tmp_path):
    path = random_checkpoint.make("llama", tmp_path / "plain")
    config = config_for(path, load_format="dummy")
    cpu = torch.device("cpu")
    whole = load_model(config, References(), cpu)
    shares = on_ranks(2, lambda tp: load_model(config, References(), cpu, tp))
    weights = [share.layers["0"].mlp.down.weight for share in shares]
    assert torch.equal(torch.cat(weights, 1), whole.layers["0"].mlp.down.weight)


@pytest.mark.parametrize(
    ("arch", "size", "message"),
    [
        ("llama", 3, r"--tensor-parallel-size 3 does not divide the 4 attention heads.*1, 2, 4"),
        ("llama", 8, r"--tensor-parallel-size 8 does not divide the 4 attention heads"),
        ("mixtral", 3, r"does not divide the 4 attention heads"),
        ("deepseek_v3", 3, r"does not divide the 4 attention heads"),
    ],
)
def test_what_does_not_divide_is_an_error_before_memory_is_taken(
    arch, size, message, tmp_path, monkeypatch
):
    config = config_for(random_checkpoint.make(arch, tmp_path / arch))

    def never(*_):
        raise AssertionError("memory was taken")

    monkeypatch.setattr("vllm.loader.allocate", never)
    with pytest.raises(ConfigError, match=message):
        on_ranks(size, lambda tp: load_model(config, References(), torch.device("cpu"), tp))


@pytest.mark.parametrize(
    ("arch", "size"),
    [
        *((arch, 2) for arch in (*sorted(FOREIGN), "llama", "qwen3", "gemma2", "qwen3_moe")),
        *((arch, 4) for arch in sorted(FOREIGN)),
    ],
)
def test_modules_of_transformers_are_shared_by_its_plan(arch, size, reference):
    assert_ranks_agree(size, reference(arch), References(), model_impl="transformers")


@pytest.mark.parametrize("arch", ["olmo2", "mixtral"])
def test_ranks_hold_their_share_of_the_modules_of_transformers(arch, reference):
    config = config_for(reference(arch).path, model_impl="transformers")

    def count(tp):
        model = load_model(config, References(), torch.device("cpu"), tp)
        shared = [p.numel() for n, p in model.named_parameters() if ".layers." in n and p.dim() > 1]
        return sum(shared)

    (whole,) = on_ranks(1, count)
    assert max(on_ranks(2, count)) < 0.55 * whole


@pytest.mark.parametrize(
    ("size", "plan", "message"),
    [
        (2, None, r"its plan is not known here \(no plan\).*those of .*, Qwen3Moe"),
        (2, {"layers.*.mlp.up_proj": "diagonal"}, r"\(diagonal for a Linear\)"),
        (2, {"layers.*.input_layernorm.weight": "rowwise"}, r"\(rowwise for .* 1 dimensions\)"),
        (3, ..., r"does not divide the 4 attention heads.* one of 1, 2\.$"),
        (4, ..., r"does not divide the 2 KV heads.* one of 1, 2\.$"),
    ],
)
def test_plans_that_cannot_be_followed_are_refused(size, plan, message, reference, monkeypatch):
    if plan is not ...:
        monkeypatch.setattr(LlamaConfig, "base_model_tp_plan", plan)
    config = config_for(reference("llama").path, model_impl="transformers")
    with pytest.raises(ConfigError, match=message):
        on_ranks(size, lambda tp: load_model(config, References(), torch.device("cpu"), tp))
