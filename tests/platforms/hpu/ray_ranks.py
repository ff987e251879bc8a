"""Emulated HPUs of two machines of a Ray cluster, beside one CPU: run by test_ray.

python -m tests.platforms.hpu.ray_ranks engine ARCH OPTIONS   prints JSON
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

from tests.engine_e2e.ray_cluster import VARIABLES, RayCluster
from tests.platforms.hpu import in_mode, nodes
from tests.platforms.hpu.ranks import tell
from tools.tiny_models import random_checkpoint


def engine(arch: str, how: str) -> None:
    """As `nodes.engine`; every machine has one module."""
    options = json.loads(how)
    shape = {name: options.pop(name) for name in ("num_hidden_layers",) if name in options}
    cluster = RayCluster()
    try:
        for module in ("0", "1"):
            cluster.add({"HABANA_VISIBLE_MODULES": module}, resources=json.dumps({"HPU": 1}))
        os.environ.update(VARIABLES, RAY_ADDRESS=cluster.address)
        with tempfile.TemporaryDirectory() as folder:
            path = random_checkpoint.make(arch, Path(folder), seed=3, **shape)
            shared = {name: value for name, value in nodes.SHARED.items() if name != "nnodes"}
            arguments = {**shared, "model": str(path), **options}
            arguments["distributed_executor_backend"] = "ray"
            given, counts = nodes.tokens_and_counts(arguments)
            expected = in_mode.with_engine(path, "cpu")
    finally:
        cluster.stop()
    tell(problem="" if given == expected else f"{given}, one {expected}", ranks=counts)


if __name__ == "__main__":
    engine(*sys.argv[2:])
