"""The kernels of the emulated device, beside references in float64."""

from __future__ import annotations

import pytest

from tests.hpu_emulator.conftest import Emulated

FP8 = ("ops_fp8.py", "ops_experts.py")


@pytest.mark.parametrize("lazy", ["0", "1"])
def test_kernels_match_references(emulated: Emulated, lazy: str) -> None:
    wide = ("ops_attention.py", "ops_blocks.py", "ops_layers.py")
    emulated.check(*wide, *FP8, PT_HPU_LAZY_MODE=lazy)


def test_fp8_is_that_of_the_generation(emulated: Emulated) -> None:
    emulated.check(*FP8, PT_HPU_LAZY_MODE="0", HPU_EMULATOR_GENERATION="gaudi3")
