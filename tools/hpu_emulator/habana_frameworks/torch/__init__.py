"""PyTorch on an emulated HPU: importing registers the device."""

from __future__ import annotations

import os

import hpu_emulator.ops
import hpu_emulator.runtime
from habana_frameworks.torch import core, hpu, utils

os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
hpu_emulator.runtime.register(hpu)
hpu.random.follow_torch()

__all__ = ["core", "hpu", "utils"]
