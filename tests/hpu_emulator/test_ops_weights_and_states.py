"""Kernels for packed weights and states of sequences, and those of earlier years."""

from __future__ import annotations

import pytest

from tests.hpu_emulator.conftest import Emulated


@pytest.mark.parametrize("lazy", ["0", "1"])
def test_packed_weights_states_and_retired_ops_match_references(
    emulated: Emulated, lazy: str
) -> None:
    files = ("ops_packed_weights.py", "ops_causal_conv.py", "ops_retired.py")
    emulated.check(*files, PT_HPU_LAZY_MODE=lazy)
