"""Experts that copies of a model share, on one machine.

python benchmarks/experts.py lockstep [--copies 2] [--steps 2000]
python benchmarks/experts.py dispatch [--pairs 20] [--tokens 2,8,64,512]

lockstep   what it takes copies to agree on the launches of a step, through shared memory
dispatch   a layer of experts over two ranks of one thread: cut by width, with all tokens on both
           (before), and whole, with half of the tokens on each, gathered and scattered (after)
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402

from benchmarks.pairs import interval  # noqa: E402
from vllm.device.agreement import AgreedTokens  # noqa: E402
from vllm.device.planner import UnifiedPlanner  # noqa: E402
from vllm.distributed.groups import Group  # noqa: E402

# Of Qwen3-30B-A3B, with a quarter of its experts.
SHAPE = {
    "hidden_size": 2048,
    "moe_intermediate_size": 768,
    "intermediate_size": 2048,
    "num_experts": 32,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 1,
}


def run_ranks(main: Any, count: int, *arguments: Any) -> list[Any]:
    """main(rank, count, paths, out, *arguments) in processes; what they send, by rank."""
    context = multiprocessing.get_context("spawn")
    memories = [os.memfd_create("ranks") for _ in range(2)]
    paths = [f"/proc/{os.getpid()}/fd/{memory}" for memory in memories]
    pipes = [context.Pipe(duplex=False) for _ in range(count)]
    processes = [
        context.Process(target=main, args=(rank, count, paths, pipes[rank][1], *arguments))
        for rank in range(count)
    ]
    for process, (_, writing) in zip(processes, pipes, strict=True):
        process.start()
        writing.close()  # or the end of a process would not show
    found = [reading.recv() for reading, _ in pipes]
    for process in processes:
        process.join()
    return found


def lockstep_main(rank: int, size: int, paths: list[str], out: Any, steps: int) -> None:
    from vllm.platforms.cpu import native
    from vllm.platforms.cpu.collectives import SharedMemory
    from vllm.worker.lockstep import Lockstep

    assert native.is_available()
    torch.set_num_threads(1)
    ranks = SharedMemory(Group(rank, size), paths[0])
    planner = UnifiedPlanner(16)
    agreement = Lockstep(planner, ranks, 1, AgreedTokens())
    launches = [planner.rehearsal_of([1] * (8 * rank))] if rank else []  # the first has nothing
    found = {"agreed": [], "exchange": []}
    for _ in range(steps):
        ranks.sum(torch.ones(1))  # begin together
        started = time.perf_counter()
        list(agreement.joined(launches))
        found["agreed"].append(time.perf_counter() - started)
        ranks.sum(torch.ones(1))
        started = time.perf_counter()
        ranks.show(np.zeros(21, np.int32))
        found["exchange"].append(time.perf_counter() - started)
    out.send(found)


def measure_lockstep(copies: int, steps: int) -> None:
    for rank, found in enumerate(run_ranks(lockstep_main, copies, steps)):
        whole, exchange = (
            np.percentile(np.array(found[name][100:]) * 1e6, (50, 99)).round(1).tolist()
            for name in ("agreed", "exchange")
        )
        print(
            f"copy {rank} of {copies}, {'8 rows each' if rank else 'without work'}: "
            f"a step {whole[0]} us, 99 % {whole[1]} us; of it the exchange {exchange[0]} us"
        )


def dispatch_main(
    rank: int, size: int, paths: list[str], out: Any, model: str, tokens: list[int], pairs: int
) -> None:
    from tests.models.harness import config_for
    from vllm.layers.dispatch import ExpertRanks
    from vllm.loader import load_model
    from vllm.platforms.cpu import CpuPlatform, native
    from vllm.platforms.cpu.collectives import SharedMemory

    assert native.is_available()
    torch.set_num_threads(1)
    ranks = [SharedMemory(Group(rank, size), path) for path in paths]
    cpu, dtype = torch.device("cpu"), torch.bfloat16
    how = {"load_format": "dummy", "dtype": "bfloat16"}
    by_width = load_model(config_for(Path(model), **how), CpuPlatform(), cpu, ranks[0])
    whole = load_model(
        config_for(Path(model), enable_expert_parallel=True, **how),
        CpuPlatform(),
        cpu,
        experts=ExpertRanks(ranks[1], AgreedTokens()),
    )
    layers = {"width": by_width.layers["0"].mlp, "whole": whole.layers["0"].mlp}
    dice = random.Random(0)  # the same order on every rank
    found: dict[int, dict[str, list[float]]] = {}
    with torch.inference_mode():
        for count in tokens:
            x = torch.randn(count, SHAPE["hidden_size"], generator=torch.Generator().manual_seed(1))
            own = x.to(dtype).chunk(size)[rank] if count >= size else x.to(dtype)
            inputs = {"width": x.to(dtype), "whole": own}
            taken: dict[str, list[float]] = {name: [] for name in layers}
            for number in range(pairs + 2):
                order = list(layers)
                dice.shuffle(order)
                for name in order:
                    ranks[0].sum(torch.ones(1))  # begin together
                    started = time.perf_counter()
                    layers[name](inputs[name])
                    ranks[0].sum(torch.ones(1))
                    if number > 1:
                        taken[name].append(time.perf_counter() - started)
            found[count] = taken
    out.send(found)


def measure_dispatch(pairs: int, tokens: list[int]) -> None:
    from tools.tiny_models import random_checkpoint

    with tempfile.TemporaryDirectory() as folder:
        path = random_checkpoint.make("qwen3_moe", Path(folder) / "model", **SHAPE)
        found = run_ranks(dispatch_main, 2, str(path), tokens, pairs)[0]
    print(f"two ranks of a thread each, milliseconds per layer, median of {pairs} pairs")
    for count, taken in found.items():
        ratios = [b / a for a, b in zip(taken["width"], taken["whole"], strict=True)]
        low, high = interval(ratios)
        print(
            f"{count:5} tokens  by width {statistics.median(taken['width']) * 1e3:8.2f}  "
            f"whole {statistics.median(taken['whole']) * 1e3:8.2f}  "
            f"ratio {statistics.median(ratios):.3f} 95 % [{low:.3f}, {high:.3f}]"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=("lockstep", "dispatch"))
    parser.add_argument("--copies", type=int, default=2)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--tokens", default="2,8,64,512")
    args = parser.parse_args()
    if args.what == "lockstep":
        measure_lockstep(args.copies, args.steps)
    else:
        measure_dispatch(args.pairs, [int(count) for count in args.tokens.split(",")])


if __name__ == "__main__":
    main()
