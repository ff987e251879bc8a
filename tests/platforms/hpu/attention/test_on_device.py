"""Attention and ops with the kernels of the emulated device, in processes that see it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.hpu_emulator.conftest import Emulated
from tests.limits import HANG_S
from tools.hpu_emulator.install import install

CHECKS = Path(__file__).with_name("on_device.py")


# The kernels do not know the mode: one is tried throughout, the other where ops differ.
@pytest.mark.parametrize(("lazy", "chosen"), [("0", "default or match_reference"), ("1", "")])
def test_attention_and_ops_are_exact_on_the_device(lazy, chosen, tmp_path):
    emulated = Emulated(install(), tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(CHECKS), "-k", chosen],
        env=emulated.environment(PT_HPU_LAZY_MODE=lazy),
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
