"""Attention and ops with the kernels of the emulated device, in processes that see it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.hpu_emulator.conftest import Emulated
from tools.hpu_emulator.install import install

CHECKS = Path(__file__).with_name("on_device.py")


@pytest.mark.parametrize("lazy", ["0", "1"])
def test_attention_and_ops_are_exact_on_the_device(lazy, tmp_path):
    emulated = Emulated(install(), tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(CHECKS)],
        env=emulated.environment(PT_HPU_LAZY_MODE=lazy),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
