"""PyTorch on an emulated HPU: importing registers the device."""

from __future__ import annotations

import os

import hpu_emulator.ops
import hpu_emulator.runtime
from habana_frameworks.torch import activity_profiler, core, hpu, utils
from habana_frameworks.torch.distributed import hccl
from habana_frameworks.torch.dynamo import compile_backend
from hpu_emulator import recipe_cache

os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
hpu_emulator.runtime.register(hpu)
hpu.random.follow_torch()
recipe_cache.install(hpu_emulator.runtime.SETTINGS)
activity_profiler.register()
compile_backend.register()

__all__ = ["activity_profiler", "core", "hccl", "hpu", "utils"]
