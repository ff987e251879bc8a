"""Two nodes of emulated HPUs, processes of this machine, beside one CPU: run by test_nodes.

python -m tests.platforms.hpu.nodes engine ARCH OPTIONS   node 0, starts the other; prints JSON
python -m tests.platforms.hpu.nodes agent ARGUMENTS       node 1
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import vllm.worker.worker
from tests.limits import HANG_S
from tests.platforms.hpu import in_mode, watching
from tests.platforms.hpu.ranks import tell
from tools.tiny_models import random_checkpoint
from vllm import LLM, AsyncEngineArgs
from vllm.executor import run_node
from vllm.utils.network_utils import get_open_port

SHARED: dict[str, Any] = {
    "device": "hpu",
    "dtype": "float32",
    "block_size": 16,
    "max_model_len": in_mode.MAX_MODEL_LEN,
    "max_num_seqs": 4,
    "max_num_batched_tokens": 32,
    "num_gpu_blocks_override": 64,
    "nnodes": 2,
}


def engine(arch: str, how: str) -> None:
    """Tokens of one rank on the CPU, and in warmed-up modes nothing compiled. `how`: JSON."""
    options = json.loads(how)
    shape = {name: options.pop(name) for name in ("num_hidden_layers",) if name in options}
    with tempfile.TemporaryDirectory() as folder:
        path = random_checkpoint.make(arch, Path(folder), seed=3, **shape)
        arguments = {**SHARED, "model": str(path), "master_port": get_open_port(), **options}
        agent = subprocess.Popen(
            [sys.executable, "-m", "tests.platforms.hpu.nodes", "agent", json.dumps(arguments)]
        )
        try:
            given, counts = tokens_and_counts(arguments)
            code = agent.wait(HANG_S)
        finally:
            agent.kill()
            agent.wait()
        expected = in_mode.with_engine(path, "cpu")
    tell(problem="" if given == expected else f"{given}, one {expected}", ranks=counts, code=code)


def tokens_and_counts(
    arguments: dict[str, Any],
) -> tuple[dict[str, in_mode.Tokens], list[dict[str, Any]]]:
    vllm.worker.worker.Worker = watching.Recorded  # type: ignore[misc]
    counts = []
    llm = LLM(disable_log_stats=True, **arguments)
    try:
        if not arguments.get("enforce_eager"):  # ops of their own are compiled when they come
            llm.collective_rpc(watching.begin)
        tokens = in_mode.tokens_of(llm)
        if not arguments.get("enforce_eager"):
            counts = [{**rank, "seen": []} for rank in llm.collective_rpc(watching.end)]
        llm.llm_engine.call("check_integrity")
    finally:
        llm.llm_engine.shutdown()
    return tokens, counts


def agent(arguments: str) -> None:
    vllm.worker.worker.Worker = watching.Recorded  # type: ignore[misc]
    options = {**json.loads(arguments), "node_rank": 1, "headless": True}
    run_node(AsyncEngineArgs(**options).create_engine_config())


if __name__ == "__main__":
    {"engine": engine, "agent": agent}[sys.argv[1]](*sys.argv[2:])
