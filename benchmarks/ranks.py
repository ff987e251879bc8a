"""Ranks on one machine: what they take to compute together, and a model over two of them.

python benchmarks/ranks.py collectives [--ranks 2] [--pairs 40]
python benchmarks/ranks.py model [--pairs 20] [--only decode,prefill,tiny-1,tiny-256]
python benchmarks/ranks.py stages [--pairs 20] [--only decode-32,mixed-32] [--partition 19,9]
                                  [--against rank,ranks]
python benchmarks/ranks.py driver [--ranks 8]
python benchmarks/ranks.py plan [--pairs 400]

collectives   sums and gathers through shared memory, through gloo, and a plain copy of as much
model         one rank with two threads (before) and two ranks with one thread each (after)
stages        32 requests at a time: one rank with two threads (before) and two stages with one
              thread each (after); two ranks that share layers (before) and two stages (after)
driver        processor time of the engine's own process per step, with one rank and with many
plan          from a plan of decoding rows to the reply of a rank that does nothing: of this
              machine, and of another node over TCP (the loopback interface)
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
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402

from benchmarks.compare.models import SHAPES, ensure  # noqa: E402
from benchmarks.pairs import (  # noqa: E402
    LARGE,
    OFFLINE,
    SMALL,
    Worker,
    Workload,
    in_rounds,
    interval,
)
from vllm.distributed.groups import Group  # noqa: E402
from vllm.distributed.place import Place, make_places  # noqa: E402
from vllm.distributed.stages import PARTITION  # noqa: E402
from vllm.executor.ranks import Ranks  # noqa: E402

KIB = 1 << 10
SIZES = (4 * KIB, 32 * KIB, 256 * KIB, 1024 * KIB, 8192 * KIB)
CALLS = {size: max(3, min(200, (4 << 20) // size)) for size in SIZES}  # in one measurement
Side = tuple[dict[str, Any], dict[str, str]]  # options of the engine, variables
ONE_RANK: Side = ({}, {"OMP_NUM_THREADS": "2"})
TWO_RANKS: Side = ({"tensor_parallel_size": 2}, {"OMP_NUM_THREADS": "2"})
TWO_STAGES: Side = ({"pipeline_parallel_size": 2}, {"OMP_NUM_THREADS": "2"})
BEFORE = {"rank": ONE_RANK, "ranks": TWO_RANKS}
LOAD = {
    "decode-32": Workload(LARGE, 32, 8, 48),
    "long-32": Workload(LARGE, 32, 8, 128),
    "mixed-32": Workload(LARGE, 32, 128, 16),
}


def measure_collectives(num_ranks: int, pairs: int) -> None:
    context = multiprocessing.get_context("spawn")
    paths, memories = [], []
    for _ in range(2):
        memories.append(os.memfd_create("ranks"))
        paths.append(f"/proc/{os.getpid()}/fd/{memories[-1]}")
    reading, writing = context.Pipe(duplex=False)
    processes = [
        context.Process(target=rank_main, args=(rank, num_ranks, paths, pairs, writing))
        for rank in range(num_ranks)
    ]
    for process in processes:
        process.start()
    print(f"{num_ranks} ranks, microseconds, median of {pairs}; ratio: shared memory / gloo")
    for name in ("sum", "gather"):
        for size in SIZES:
            found = reading.recv()
            ratios = [a / b for a, b in zip(found["shared"], found["gloo"], strict=True)]
            low, high = interval(ratios)
            medians = "  ".join(
                f"{kind} {statistics.median(taken) * 1e6:9.1f}" for kind, taken in found.items()
            )
            print(
                f"{name:6} {size // KIB:5} KiB  {medians}  ratio {statistics.median(ratios):.3f} "
                f"95 % [{low:.3f}, {high:.3f}]",
                flush=True,
            )
    for process in processes:
        process.join()


def rank_main(rank: int, size: int, paths: list[str], pairs: int, out: Any) -> None:
    from vllm.distributed.rendezvous import limit_of, meeting
    from vllm.platforms.cpu import native
    from vllm.platforms.cpu.collectives import SharedMemory
    from vllm.platforms.cpu.gloo import Gloo

    assert native.is_available()
    torch.set_num_threads(1)
    shared = SharedMemory(Group(rank, size), paths[0])
    # gloo's own sum: the fastest that it has.
    place = Place(rank, size, rank, tp=Group(rank, size), rendezvous=paths[1])
    gloo = Gloo(meeting(place, limit_of(0), "benchmark"), place.tp, limit_of(0))
    dice = random.Random(0)  # the same order on every rank
    for name in ("sum", "gather"):
        for num_bytes in SIZES:
            x = torch.ones(num_bytes // 4)
            copy_to = torch.empty_like(x)
            kinds: dict[str, Callable[[], object]] = {
                "shared": partial(getattr(shared, name), x),
                "gloo": partial(_allreduce, gloo, x) if name == "sum" else partial(gloo.gather, x),
                "copy": partial(copy_to.copy_, x),
            }
            taken: dict[str, list[float]] = {kind: [] for kind in kinds}
            for number in range(pairs + 1):
                order = list(kinds)
                dice.shuffle(order)
                for kind in order:
                    shared.sum(torch.ones(1))  # begin together
                    started = time.perf_counter()
                    for _ in range(CALLS[num_bytes]):
                        kinds[kind]()
                    if number:
                        taken[kind].append((time.perf_counter() - started) / CALLS[num_bytes])
            if rank == 0:
                out.send(taken)


def _allreduce(gloo: Any, x: torch.Tensor) -> None:
    gloo._ranks.allreduce([x]).wait()


def measure_model(pairs: int, wanted: list[str], folder: Path) -> None:
    for model in (LARGE, SMALL):
        loads = {n: w for n, w in OFFLINE.items() if n in wanted and w.model == model}
        if loads:
            path = ensure(SHAPES[model], folder)
            sides = [ONE_RANK, TWO_RANKS]
            in_rounds(partial(started, path), Worker.seconds, loads, sides, pairs)


def measure_stages(
    pairs: int, wanted: list[str], partition: str, against: list[str], folder: Path
) -> None:
    path = ensure(SHAPES[LARGE], folder)
    loads = {name: load for name, load in LOAD.items() if name in wanted}
    options, variables = TWO_STAGES
    stages = options, {**variables, PARTITION: partition}
    for name in against:
        print(f"two stages against {name}", flush=True)
        in_rounds(partial(started, path), Worker.seconds, loads, [BEFORE[name], stages], pairs)


@contextmanager
def started(model: Path, side: Side) -> Any:
    options, variables = side
    worker = Worker(ROOT, model, options, variables)
    try:
        yield worker
    finally:
        worker.close()


def measure_driver(num_ranks: int, folder: Path) -> None:
    """In this process, which plans and sends steps and waits for them."""
    from vllm import LLM, SamplingParams

    steps = 200
    params = SamplingParams(temperature=0, max_tokens=steps, ignore_eos=True, detokenize=False)
    prompts = [{"prompt_token_ids": [5, 6, 7, 8]}] * 4
    shape = replace(SHAPES[SMALL], name="tiny-heads", num_heads=8, num_kv_heads=8)
    path = ensure(shape, folder)
    for ranks, backend in ((1, "uni"), (1, "mp"), (num_ranks, "mp")):
        llm = LLM(
            str(path),
            tensor_parallel_size=ranks,
            distributed_executor_backend=backend,
            max_model_len=512,
            max_num_seqs=8,
            kv_cache_memory_bytes=64 << 20,
            use_tqdm_on_load=False,
        )
        llm.generate(prompts, params, use_tqdm=False)
        wall, cpu = time.perf_counter(), time.process_time()
        llm.generate(prompts, params, use_tqdm=False)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        print(
            f"{ranks} ranks, {backend}: {cpu / steps * 1e6:.0f} us of processor time in the "
            f"engine process per step, {wall / steps * 1e6:.0f} us by the clock",
            flush=True,
        )
        llm.llm_engine.shutdown()


def reply_at_once(place: Place, channel: Any, pulse: Any) -> None:
    """What a rank does that is asked for plans: nothing."""
    from vllm.executor.ranks import ChannelClosed

    pulse.beat()
    try:
        while channel.get():
            channel.put(b"done")
    except ChannelClosed:
        return


def run_agent(nodes: Any, settings: Any) -> None:
    from vllm.executor.local_ranks import LocalRanks
    from vllm.executor.nodes.agent import Agent

    Agent(reply_at_once, LocalRanks(), make_places(2, 1, 2), nodes).run(settings)


def decode_plan(rows: int) -> bytes:
    """As it is sent: every row of a request computes a token and draws one."""
    from vllm.messages.codec import encoder
    from vllm.messages.rank import RunStep
    from vllm.messages.step import StepPlan

    slots = np.arange(1, rows + 1, dtype=np.int32)
    none = np.empty(0, np.int32)
    plan = StepPlan(
        step=1000,
        slots=slots,
        starts=slots + 100,
        counts=np.ones(rows, np.int32),
        samples=np.ones(rows, bool),
        releases=none,
        admissions=(),
        blocks=none.reshape(0, 4),
    )
    return encoder().encode(RunStep(plan))


def measure_plan(rounds: int) -> None:
    """The reply is that of the second of two ranks, by the clock of this process."""
    from vllm.executor.local_ranks import LocalRanks
    from vllm.executor.nodes.meeting import Nodes
    from vllm.executor.nodes.ranks import NodeRanks
    from vllm.messages.rank import Joined
    from vllm.utils.network_utils import get_open_port

    context = multiprocessing.get_context("spawn")
    settings = Joined(sections={}, versions={}, variables={})
    nodes = Nodes(2, 0, "127.0.0.1", get_open_port())
    agent = context.Process(target=run_agent, args=(replace(nodes, own=1), settings))
    agent.start()
    kinds = {
        "shared memory": (LocalRanks(), make_places(2)),
        "a node's link": (NodeRanks(LocalRanks(), nodes, settings), make_places(2, 1, 2)),
    }
    for ranks, places in kinds.values():
        ranks.start(reply_at_once, places, lambda: None)
    plans = {rows: decode_plan(rows) for rows in (1, 32, 256)}
    cases = [(kind, rows) for kind in kinds for rows in plans]
    taken: dict[tuple[str, int], list[float]] = {case: [] for case in cases}
    dice = random.Random(0)
    for number in range(rounds + 20):
        dice.shuffle(cases)
        for kind, rows in cases:
            seconds = reply_time(kinds[kind][0], plans[rows])
            if number >= 20:
                taken[kind, rows].append(seconds)
    for (kind, rows), some in sorted(taken.items()):
        low, *_, high = statistics.quantiles(some, n=20)
        print(
            f"{kind}, {rows:3} rows, {len(plans[rows])} bytes: "
            f"{statistics.median(some) * 1e6:.0f} us (median of {rounds}; "
            f"5 to 95 %: {low * 1e6:.0f} to {high * 1e6:.0f})"
        )
    for ranks, _ in kinds.values():
        ranks.stop()
    agent.join()


def reply_time(ranks: Ranks, plan: bytes) -> float:
    """Seconds until rank 1 has replied; returns when both ranks have."""
    seconds, missing = 0.0, 2
    started = time.perf_counter()
    ranks.put(plan)
    while missing:
        for rank, _ in ranks.ready(None):
            missing -= 1
            if rank == 1:
                seconds = time.perf_counter() - started
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=("collectives", "model", "stages", "driver", "plan"))
    parser.add_argument("--ranks", type=int, default=0, help="By default 2; driver: 8.")
    parser.add_argument("--pairs", type=int, default=20)
    names = [*OFFLINE, *LOAD]
    parser.add_argument("--only", default=",".join(names), help=f"Of {', '.join(names)}.")
    parser.add_argument("--partition", default="", help="stages: layers of each, such as 19,9.")
    parser.add_argument("--against", default="rank,ranks", help="stages: one rank, two ranks.")
    parser.add_argument(
        "--models", type=Path, default=Path(tempfile.gettempdir()) / "pairs", help="For models."
    )
    args = parser.parse_args()
    if args.what == "collectives":
        measure_collectives(args.ranks or 2, args.pairs)
    elif args.what == "stages":
        measure_stages(
            args.pairs,
            args.only.split(","),
            args.partition,
            args.against.split(","),
            args.models,
        )
    elif args.what == "plan":
        measure_plan(max(200, args.pairs))
    elif args.what == "driver":
        measure_driver(args.ranks or 8, args.models)
    else:
        measure_model(args.pairs, args.only.split(","), args.models)


if __name__ == "__main__":
    main()
