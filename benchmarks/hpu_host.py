"""What the host does per decode step on the HPU platform, beside what the device does.

PYTHONPATH=DIRECTORY:. python benchmarks/hpu_host.py [--mode graphs] [--batch 1 64 256]
                       [--steps 200] [--repeats 3] [--depth 2] [--temperature 0] [--calls FILE]

DIRECTORY holds the emulated device (tools/hpu_emulator/install.py prints it), which computes on the
host's own thread: its time is all that is spent in ops on its tensors and in replays of graphs, and
host time is the rest of what a step uses of the processor. All are figures of the emulator on a
CPU, never of a Gaudi. Per step, in microseconds: median of the repeats, the least and the greatest:

    step_us      from one step to the next (median of the steps), and the extremes of all steps
    used_us      processor time of all threads
    device_us    of that, in ops and replays, while every part is watched
    host_us      the rest, likewise; `watching_us` of it is due to watching
    parts_us     both by part
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from step_parts import DEVICE, Watch, cost_of_watching_us, spread

if TYPE_CHECKING:
    from vllm import LLM

MODES = {"compile": ("0", False), "eager": ("0", True), "graphs": ("1", False), "lazy": ("1", True)}
PROMPT_TOKENS = 16
SETTLING_STEPS = 20  # after the last prompt, until pipeline and caches are as they stay


def watch_parts(watch: Watch) -> None:
    """The parts of a step, and where the device works without an op of its own."""
    from habana_frameworks.torch.dynamo.compile_backend import backends
    from habana_frameworks.torch.hpu.graphs import HPUGraph

    from vllm.core.scheduler import Scheduler
    from vllm.engine.front_end import FrontEnd
    from vllm.platforms.hpu import graphs
    from vllm.platforms.hpu.attention.backend import HpuAttention
    from vllm.platforms.hpu.device import HpuDevice, StreamedCopy
    from vllm.platforms.hpu.planner import PhasedPlanner
    from vllm.platforms.hpu.shape_tally import ShapeTally
    from vllm.sample.static_sampler import StaticSampler
    from vllm.worker.ends.draw_tokens import DrawTokens
    from vllm.worker.ends.drawn import DrawnStep
    from vllm.worker.inputs import GatherTokens
    from vllm.worker.model_runner import ModelRunner
    from vllm.worker.slots import Slots

    for owner, name, part in (
        (Scheduler, "schedule", "schedule"),
        (Scheduler, "commit", "commit"),
        (Scheduler, "snapshot", "commit"),
        (Slots, "apply", "plan to slots"),
        (PhasedPlanner, "split", "split"),
        (HpuAttention, "plan", "attention plan"),
        (GatherTokens, "gather", "inputs"),
        (graphs.HpuRunner, "run", "call of the model"),
        (graphs.LazyRunner, "run", "call of the model"),
        (graphs.HpuGraphRunner, "run", "call of the model"),
        (graphs.CompiledRunner, "run", "call of the model"),
        (DrawTokens, "finish", "draws"),
        (ModelRunner, "execute", "runner"),
        (StaticSampler, "sample", "sampler"),
        (Slots, "write_drawn", "sampler"),
        (HpuDevice, "upload", "transfers"),
        (HpuDevice, "put", "transfers"),
        (HpuDevice, "download", "transfers"),
        (HpuDevice, "step_boundary", "transfers"),
        (StreamedCopy, "wait", "transfers"),
        (DrawnStep, "result", "result"),
        (ShapeTally, "launch_ends", "shape tally"),
        (FrontEnd, "process", "output, text"),
        (HPUGraph, "replay", DEVICE),
        (HPUGraph, "replayV3", DEVICE),
        (backends.CompiledGraph, "__call__", DEVICE),  # the guards before it are the host's
    ):
        watch.wrap(owner, name, part)


def watch_ops(watch: Watch) -> None:
    """Every op of a step is the device's time; those of replays and compiled regions are one."""
    from habana_frameworks.torch.hpu.graphs import HPUGraph
    from torch.overrides import (
        TorchFunctionMode,
        _get_current_function_mode,
        _pop_mode_temporarily,
    )

    from vllm.platforms.hpu.graphs import CompiledRunner
    from vllm.worker.model_runner import ModelRunner

    class Ops(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
        ) -> Any:
            return watch.device(func, *args, **(kwargs or {}))

    execute = ModelRunner.execute

    def watched_execute(self: Any, plan: Any) -> Any:
        if not watch.is_on:
            return execute(self, plan)
        with Ops():
            return execute(self, plan)

    def as_one(function: Callable[..., Any]) -> Callable[..., Any]:
        def unwatched(*args: Any) -> Any:
            if _get_current_function_mode() is None:
                return function(*args)
            with _pop_mode_temporarily():
                return function(*args)

        return unwatched

    ModelRunner.execute = watched_execute  # type: ignore[method-assign]
    # torch.compile would trace the mode, and kernels that the emulator has in Python would meet it.
    for owner, name in ((CompiledRunner, "run"), (HPUGraph, "replay"), (HPUGraph, "replayV3")):
        setattr(owner, name, as_one(vars(owner)[name]))


def make_engine(folder: Path, args: argparse.Namespace) -> LLM:
    from tools.tiny_models import random_checkpoint
    from vllm import LLM

    length = PROMPT_TOKENS + SETTLING_STEPS + args.steps + 40
    fields = {"num_hidden_layers": 2, "hidden_size": 64, "max_position_embeddings": length}
    path = random_checkpoint.make("llama", folder, seed=3, **fields)
    most = max(args.batch)
    return LLM(
        str(path),
        device="hpu",
        dtype="float32",
        max_model_len=length,
        max_num_seqs=most,
        max_num_batched_tokens=max(512, most),
        num_gpu_blocks_override=most * -(-length // 128) + 2,
        pipeline_depth=args.depth,
        enable_prefix_caching=False,
        enforce_eager=MODES[args.mode][1],
        disable_log_stats=True,
    )


@contextmanager
def decoding(llm: LLM, batch: int, args: argparse.Namespace) -> Iterator[Callable[[], object]]:
    """-> a decode step of `batch` rows, as often as wanted up to args.steps times."""
    from vllm import SamplingParams
    from vllm.inputs import TokensPrompt
    from vllm.sampling_params import RequestOutputKind

    engine = llm.llm_engine
    params = SamplingParams(
        temperature=args.temperature,
        seed=1,
        ignore_eos=True,
        output_kind=RequestOutputKind.DELTA,  # as the server streams
        max_tokens=SETTLING_STEPS + args.steps + 16,
    )
    for i in range(batch):
        prompt = TokensPrompt(prompt_token_ids=[3 + i, *range(5, 4 + PROMPT_TOKENS)])
        engine.add_request(str(i), prompt, params)
    while any(len(s.token_ids) < SETTLING_STEPS for s in sequences_of(engine)):
        engine.step()
    yield engine.step
    engine.abort_all()
    engine.settle()


def sequences_of(engine: Any) -> list[Any]:
    requests = engine.front.output_processor.requests.values()
    return [sequence for request in requests for sequence in request.sequences]


def time_steps(step: Callable[[], object], count: int) -> list[float]:
    """Microseconds of each."""
    found = []
    for _ in range(count):
        begun_ns = time.perf_counter_ns()
        step()
        found.append((time.perf_counter_ns() - begun_ns) / 1000)
    return found


def measure(llm: LLM, watch: Watch, batch: int, args: argparse.Namespace) -> dict[str, Any]:
    import hpu_emulator.counters

    steps: list[list[float]] = []
    used_us: list[float] = []
    parts: list[dict[str, float]] = []
    compilations = 0
    gc.collect()
    gc.disable()  # a collection in one step in a hundred belongs to none of the parts
    for _ in range(args.repeats):
        with decoding(llm, batch, args) as step:
            before = hpu_emulator.counters.snapshot()
            begun_ns = time.process_time_ns()
            steps.append(time_steps(step, args.steps))
            used_us.append((time.process_time_ns() - begun_ns) / 1000 / args.steps)
            compilations += hpu_emulator.counters.since(before).compilations
        with decoding(llm, batch, args) as step:
            watch.start()
            time_steps(step, args.steps)
            watch.stop()
        parts.append({name: ns / 1000 / args.steps for name, ns in watch.parts().items()})
    gc.enable()
    entries = sum(thread.num_entries for thread in watch.threads.values()) / args.steps
    hosts = [sum(part.values()) - part[DEVICE] for part in parts]
    middle = parts[hosts.index(statistics.median_low(hosts))]
    return {
        "batch": batch,
        "compilations": compilations,
        "step_us": spread([statistics.median(some) for some in steps]),
        "step_us_min_max": [round(f(map(f, steps))) for f in (min, max)],
        "used_us": spread(used_us),
        "device_us": spread([part[DEVICE] for part in parts]),
        "host_us": spread(hosts),
        "watching_us": round(entries * cost_of_watching_us()),
        "parts_us": {
            name: round(us) for name, us in sorted(middle.items(), key=lambda item: -item[1])
        },
    }


def profile_calls(llm: LLM, batch: int, args: argparse.Namespace) -> None:
    with decoding(llm, batch, args) as step:
        profile = cProfile.Profile()
        profile.runcall(time_steps, step, args.steps)
    profile.dump_stats(f"{args.calls}.{batch}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mode", choices=MODES, default="graphs")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 64, 256])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--depth", type=int, default=2)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--calls", help="write cProfile statistics to FILE.BATCH instead")
    args = parser.parse_args()
    # Before torch is imported: the plugin reads it when it is loaded.
    os.environ["PT_HPU_LAZY_MODE"] = MODES[args.mode][0]
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    watch = Watch()
    watch_ops(watch)
    watch_parts(watch)
    with tempfile.TemporaryDirectory() as folder:
        llm = make_engine(Path(folder), args)
        for batch in args.batch:
            if args.calls:
                profile_calls(llm, batch, args)
            else:
                print(json.dumps(measure(llm, watch, batch, args)), flush=True)
        llm.llm_engine.shutdown()


if __name__ == "__main__":
    main()
