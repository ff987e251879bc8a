"""Another kind of inputs through the graph runner of this process's mode: run by test_modes.

python -m tests.platforms.hpu.stage_inputs [--enforce-eager]   prints JSON
"""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace
from typing import Any

import torch
from hpu_emulator import strict

from tests.platforms.stage import check_stage
from vllm.platforms.hpu.device import HpuDevice
from vllm.platforms.hpu.graphs import make_runner
from vllm.platforms.hpu.settings import settings_of


def main(enforce_eager: bool) -> None:
    config: Any = SimpleNamespace(
        device=SimpleNamespace(enforce_eager=enforce_eager),
        parallel=SimpleNamespace(pipeline_parallel_size=1),
    )
    device = HpuDevice(0)
    runner = make_runner(settings_of(config))
    with torch.inference_mode(), strict.strict("dtype"):
        stage = check_stage(runner, device.torch_device, captures=lambda rows: rows != 3)
    print(json.dumps({"runner": type(runner).__name__, "calls": stage.calls}), flush=True)


if __name__ == "__main__":
    main("--enforce-eager" in sys.argv)
