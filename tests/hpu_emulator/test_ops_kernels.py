"""The kernels of the emulated device, beside references in float64."""

from __future__ import annotations

from tests.hpu_emulator.conftest import Emulated

KERNELS = (
    "ops_attention.py",
    "ops_blocks.py",
    "ops_experts.py",
    "ops_fp8.py",
    "ops_layers.py",
)


def test_kernels_match_references_in_eager_mode_and_compiled(emulated: Emulated) -> None:
    emulated.check(*KERNELS, "ops_compiled.py", PT_HPU_LAZY_MODE="0")


def test_kernels_match_references_in_lazy_mode(emulated: Emulated) -> None:
    # No kernel knows the mode: those suffice whose arguments lazy mode treats in its own way.
    emulated.check("ops_blocks.py", "ops_layers.py", PT_HPU_LAZY_MODE="1")


def test_fp8_is_that_of_the_generation(emulated: Emulated) -> None:
    emulated.check("ops_fp8.py", PT_HPU_LAZY_MODE="0", HPU_EMULATOR_GENERATION="gaudi3")
