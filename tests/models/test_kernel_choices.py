"""Text does not depend on which kernels compute it: each instruction set, each kernel left out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from tests.models.harness import config_for
from tests.models.test_parity import assert_same_text_and_logits, loaded
from tests.ops.overrides import isas
from vllm.config.vllm import VllmConfig
from vllm.device.attention import AttentionBackend
from vllm.layers.methods import DeviceMethods
from vllm.ops.registry import Ops
from vllm.platforms.base import Platform
from vllm.platforms.cpu import CpuPlatform, native
from vllm.platforms.cpu.attention import TorchAttention

# Between them they use every kernel: norms per head and gated, windows and soft caps, latent rows.
ARCHITECTURES = ("qwen3", "gemma2", "mixtral", "deepseek_v3")
KERNELS = (
    *("rms_norm", "fused_add_rms_norm", "gemma_rms_norm", "silu_and_mul", "gelu_tanh_and_mul"),
    *("rotary", "normed_rotary", "attention", "packed weights"),
)


class Without(CpuPlatform):
    """The CPU without one of its kernels, or without packed weights, or attention's."""

    def __init__(self, left_out: str) -> None:
        self.left_out = left_out

    def ops(self) -> Mapping[str, Callable[..., Any]]:
        return {name: op for name, op in super().ops().items() if name != self.left_out}

    def attention_backends(self, config: VllmConfig) -> Sequence[AttentionBackend]:
        found = super().attention_backends(config)
        return (TorchAttention(),) if self.left_out == "attention" else found

    def weight_methods(self, ops: Ops) -> DeviceMethods:
        plain = self.left_out == "packed weights"
        return Platform.weight_methods(self, ops) if plain else super().weight_methods(ops)


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("isa", isas())
def test_every_instruction_set_gives_the_text_of_transformers(isa, arch, reference):
    expected = reference(arch)
    native.select_isa(isa)
    try:
        assert_same_text_and_logits(loaded(config_for(expected.path)), expected)
    finally:
        native.select_isa("auto")


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("left_out", KERNELS if isas() else [])
def test_no_kernel_is_needed_for_the_text_of_transformers(left_out, arch, reference):
    expected = reference(arch)
    assert_same_text_and_logits(loaded(config_for(expected.path), Without(left_out)), expected)
