"""What the host does per step on the CPU platform, with a model that costs next to nothing.

PYTHONPATH=. python benchmarks/host.py [--workload steps offline serve waiting prefix]
             [--batch 1 64 256] [--steps 100] [--repeats 3] [--depth 1] [--calls FILE]

The model has two layers, a hidden size of 64, and 16,384 tokens of random weights. One JSON object
a line:

steps     processor time of a decode step by part, all threads, in microseconds: median of the
          repeats, the least and the greatest. host_us leaves out the parts `model` and `sampling`
offline   LLM.generate of 256 prompts of 16 tokens, 128 tokens of output each, and of one: tokens/s,
          with the engine in this process and in its own
serve     the same over HTTP in 64 concurrent streams, to a client that only counts events
waiting   microseconds to schedule and commit a step of 64 rows while so many other requests wait
prefix    microseconds to look up a new prompt of so many tokens, and again; then one that goes on
          from it by 64 tokens, and again; and one that goes on from that
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import gc
import itertools
import json
import os
import random
import statistics
import string
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from step_parts import Watch, cost_of_watching_us, spread

if TYPE_CHECKING:
    from vllm import LLM

VOCAB_SIZE = 16_384
NUM_REQUESTS, NUM_STREAMS = 256, 64
PROMPT_TOKENS, OUTPUT_TOKENS = 16, 128
SETTLING_STEPS = 20  # after the last prompt, until the pipeline is as it stays
KERNELS = ("model", "sampling")
WAITING = (100, 1_000, 10_000)
PREFIXES = (1_024, 8_192)


def make_model(folder: Path) -> str:
    """A random checkpoint whose tokens are bytes, pairs and triples of letters."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from tools.tiny_models import random_checkpoint

    random_checkpoint.make(
        "llama",
        folder,
        seed=3,
        vocab_size=VOCAB_SIZE,
        num_hidden_layers=2,
        hidden_size=64,
        max_position_embeddings=32_768,
    )
    letters = string.ascii_lowercase
    pairs = [(a, b) for a in letters for b in letters]
    triples = [(a + b, c) for a, b in pairs for c in letters]
    merges = [*pairs, *triples]
    tokens = ["<s>", "</s>", "<pad>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    merges = merges[: VOCAB_SIZE - len(tokens)]
    tokens += [left + right for left, right in merges]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    ).save_pretrained(folder)
    return str(folder)


def make_llm(model: str, args: argparse.Namespace) -> LLM:
    from vllm import LLM

    return LLM(
        model,
        max_model_len=1024,
        max_num_seqs=NUM_REQUESTS,
        max_num_batched_tokens=NUM_REQUESTS * PROMPT_TOKENS,
        kv_cache_memory_bytes=256 << 20,
        pipeline_depth=args.depth,
        disable_log_stats=True,
        dtype="bfloat16",
    )


def prompts_of(count: int, seed: int) -> list[dict[str, list[int]]]:
    draw = random.Random(seed)
    return [
        {"prompt_token_ids": [draw.randrange(3, VOCAB_SIZE) for _ in range(PROMPT_TOKENS)]}
        for _ in range(count)
    ]


# -- steps ----------------------------------------------------------------------------------------


def watch_parts(watch: Watch) -> None:
    from vllm.attention.paged import PagedAttention
    from vllm.core.scheduler import Scheduler
    from vllm.device.planner import UnifiedPlanner
    from vllm.engine.front_end import FrontEnd
    from vllm.engine.output_processor import OutputProcessor
    from vllm.models.decoder import Decoder
    from vllm.platforms.cpu.graphs import CpuGraphRunner
    from vllm.sample.sampler import Sampler
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
        (UnifiedPlanner, "split", "split"),
        (PagedAttention, "plan", "attention plan"),
        (GatherTokens, "gather", "inputs"),
        (CpuGraphRunner, "run", "model"),
        (Decoder, "logits", "model"),
        (Decoder, "greatest", "model"),
        (DrawTokens, "finish", "draws"),
        (ModelRunner, "execute", "runner"),
        (Sampler, "sample", "sampling"),
        (Slots, "write_drawn", "write drawn"),
        (DrawnStep, "result", "result"),
        (OutputProcessor, "process", "output, text"),
        (FrontEnd, "process", "front end"),
    ):
        watch.wrap(owner, name, part)


@contextmanager
def decoding(llm: LLM, batch: int, steps: int, streams: bool) -> Iterator[Callable[[], object]]:
    """-> a decode step of `batch` rows, as often as wanted up to `steps` times."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    engine = llm.llm_engine
    kind = RequestOutputKind.DELTA if streams else RequestOutputKind.FINAL_ONLY
    params = SamplingParams(
        temperature=0.0,
        ignore_eos=True,
        output_kind=kind,
        max_tokens=SETTLING_STEPS + steps + 16,
    )
    for i, prompt in enumerate(prompts_of(batch, seed=5)):
        engine.add_request(str(i), prompt, params)
    for _ in range(SETTLING_STEPS):
        engine.step()
    yield engine.step
    engine.abort_all()
    engine.settle()


def measure_steps(llm: LLM, watch: Watch, batch: int, streams: bool, args: Any) -> dict[str, Any]:
    step_us, parts = [], []
    gc.collect()
    for _ in range(args.repeats):
        with decoding(llm, batch, args.steps, streams) as step:
            step_us.append(statistics.median(time_steps(step, args.steps)))
        with decoding(llm, batch, args.steps, streams) as step:
            watch.start()
            time_steps(step, args.steps)
            watch.stop()
        parts.append({name: ns / 1000 / args.steps for name, ns in watch.parts().items()})
    entries = sum(thread.num_entries for thread in watch.threads.values()) / args.steps
    hosts = [sum(us for name, us in part.items() if name not in KERNELS) for part in parts]
    middle = parts[hosts.index(statistics.median_low(hosts))]
    return {
        "workload": "steps",
        "batch": batch,
        "streams": streams,
        "depth": args.depth,
        "step_us": spread(step_us),
        "host_us": spread(hosts),
        "watching_us": round(entries * cost_of_watching_us()),
        "parts_us": {
            name: round(us) for name, us in sorted(middle.items(), key=lambda item: -item[1])
        },
    }


def time_steps(step: Callable[[], object], count: int) -> list[float]:
    """Microseconds of each."""
    found = []
    for _ in range(count):
        begun_ns = time.perf_counter_ns()
        step()
        found.append((time.perf_counter_ns() - begun_ns) / 1000)
    return found


def profile_calls(llm: LLM, batch: int, streams: bool, args: argparse.Namespace) -> None:
    with decoding(llm, batch, args.steps, streams) as step:
        profile = cProfile.Profile()
        profile.runcall(time_steps, step, args.steps)
    profile.dump_stats(f"{args.calls}.{batch}{'s' if streams else ''}")


def run_steps(model: str, args: argparse.Namespace) -> None:
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    watch = Watch()
    if not args.calls:
        watch_parts(watch)
    llm = make_llm(model, args)
    for batch, streams in itertools.product(args.batch, (False, True)):
        if args.calls:
            profile_calls(llm, batch, streams, args)
        else:
            show(measure_steps(llm, watch, batch, streams, args))
    llm.llm_engine.shutdown()


# -- offline --------------------------------------------------------------------------------------


def run_offline(model: str, args: argparse.Namespace) -> None:
    from vllm import SamplingParams

    params = SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=OUTPUT_TOKENS)
    for process in args.process:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = process
        llm = make_llm(model, args)
        for count in (NUM_REQUESTS, 1):
            rates = []
            for repeat in range(args.repeats + 1):  # the first one warms up
                prompts = prompts_of(count, seed=repeat)
                begun_s = time.perf_counter()
                outputs = llm.generate(prompts, params, use_tqdm=False)
                elapsed_s = time.perf_counter() - begun_s
                assert sum(len(o.outputs[0].token_ids) for o in outputs) == count * OUTPUT_TOKENS
                rates.append(count * OUTPUT_TOKENS / elapsed_s)
            rate = spread(rates[1:])
            show(
                {
                    "workload": "offline",
                    "engine_process": process == "1",
                    "requests": count,
                    "depth": args.depth,
                    "tokens_per_s": rate,
                    "us_per_step": round(count / rate[0] * 1e6),
                }
            )
        llm.llm_engine.shutdown()


# -- serve ----------------------------------------------------------------------------------------


async def count_events(host: str, port: int, bodies: Iterator[bytes], tokens: list[int]) -> None:
    """Stream one request after the other over a connection each."""
    for body in bodies:
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(body)
        num_events = 0
        while data := await reader.read(1 << 16):
            num_events += data.count(b"data: {")
        tokens.append(num_events)
        writer.close()


def bodies_of(count: int, seed: int) -> list[bytes]:
    found = []
    for prompt in prompts_of(count, seed):
        fields = {"stream": True, "ignore_eos": True, "temperature": 0}
        fields |= {"prompt": prompt["prompt_token_ids"], "max_tokens": OUTPUT_TOKENS}
        body = json.dumps(fields).encode()
        head = (
            "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        found.append(head.encode() + body)
    return found


async def load(host: str, port: int, seed: int) -> tuple[float, list[int]]:
    bodies, events = iter(bodies_of(NUM_REQUESTS, seed)), list[int]()
    begun_s = time.perf_counter()
    await asyncio.gather(*(count_events(host, port, bodies, events) for _ in range(NUM_STREAMS)))
    return time.perf_counter() - begun_s, events


def run_serve(model: str, args: argparse.Namespace) -> None:
    """A server in processes of its own; this process is the client."""
    import uvloop
    from quick import serving

    flags = ["--max-model-len", "1024", "--max-num-seqs", str(NUM_REQUESTS)]
    flags += ["--kv-cache-memory-bytes", str(256 << 20), "--pipeline-depth", str(args.depth)]
    flags += ["--dtype", "bfloat16", "--disable-uvicorn-access-log"]
    with serving(model, flags) as (url, _):
        port, rates, shares = int(url.rsplit(":", 1)[1]), [], []
        for repeat in range(args.repeats + 1):
            elapsed_s, events = uvloop.run(load("127.0.0.1", port, repeat))
            rates.append(NUM_REQUESTS * OUTPUT_TOKENS / elapsed_s)
            shares.append(sum(events) / (NUM_REQUESTS * OUTPUT_TOKENS))
        show(
            {
                "workload": "serve",
                "streams": NUM_STREAMS,
                "depth": args.depth,
                "tokens_per_s": spread(rates[1:]),
                "events_per_token": round(statistics.median(shares[1:]), 2),
            }
        )


# -- the scheduler alone --------------------------------------------------------------------------


def make_scheduler(model: str, num_blocks: int, max_num_seqs: int, max_model_len: int = 512) -> Any:
    from vllm.core.scheduler import Scheduler
    from vllm.engine.arg_utils import EngineArgs
    from vllm.messages.cache import FullAttention, KVCacheLayout, groups_by_needs

    spec = FullAttention(block_size=16, num_kv_heads=1, head_dim=8, value_dim=8, dtype_bytes=4)
    layout = KVCacheLayout(num_blocks, groups_by_needs({"layer": spec}))
    config = EngineArgs(
        model=model,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=16_384,
        max_model_len=max_model_len,
    ).create_engine_config()
    return Scheduler(config, layout)


def engine_request(name: str, token_ids: list[int], max_tokens: int) -> Any:
    from vllm import SamplingParams
    from vllm.messages.engine import EngineRequest

    params = SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=max_tokens, seed=0)
    return EngineRequest(name, token_ids, params, time.time())


def scheduler_step(scheduler: Any) -> None:
    import numpy as np

    from vllm.messages.step import StepResult

    plan = scheduler.schedule()
    drawn = np.full(int(plan.samples.sum()), 7, np.int32)
    scheduler.commit(plan, StepResult(plan.step, drawn))


def run_waiting(model: str, args: argparse.Namespace) -> None:
    """Steps of 64 rows, of which some end and others are admitted all the time."""
    for num_waiting in WAITING:
        scheduler = make_scheduler(model, num_blocks=4096, max_num_seqs=NUM_STREAMS)
        for i, prompt in enumerate(prompts_of(NUM_STREAMS + num_waiting, seed=1)):
            scheduler.add(
                engine_request(str(i), prompt["prompt_token_ids"], max_tokens=32 + i % 37)
            )
        for _ in range(SETTLING_STEPS):
            scheduler_step(scheduler)
        step_us = time_steps(lambda scheduler=scheduler: scheduler_step(scheduler), 30)
        show(
            {
                "workload": "waiting",
                "waiting": num_waiting,
                "step_us": spread(step_us),
            }
        )


def run_prefix(model: str, args: argparse.Namespace) -> None:
    """A prompt alone, a second one that begins with it and goes on for 64 tokens, a third one."""
    draw = random.Random(0)
    for num_tokens in PREFIXES:
        scheduler = make_scheduler(model, num_blocks=4096, max_num_seqs=4, max_model_len=32_768)
        ids = [draw.randrange(2000) for _ in range(num_tokens + 128)]
        found = []
        for turn in range(3):
            prompt = ids[: num_tokens + 64 * turn]
            scheduler.add(engine_request(str(turn), prompt, max_tokens=2))
            request = scheduler.lifecycle.waiting.peek()
            found += time_steps(lambda kv=scheduler.kv, request=request: kv.match(request), 2)
            while scheduler.has_work:
                scheduler_step(scheduler)
        show({"workload": "prefix", "tokens": num_tokens, "match_us": [round(us) for us in found]})


def show(found: dict[str, Any]) -> None:
    print(json.dumps(found), flush=True)


WORKLOADS = {
    "steps": run_steps,
    "offline": run_offline,
    "serve": run_serve,
    "waiting": run_waiting,
    "prefix": run_prefix,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workload", choices=WORKLOADS, nargs="+", default=list(WORKLOADS))
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 64, 256])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--depth", type=int, default=1)
    parser.add_argument("--process", choices=("0", "1"), nargs="+", default=["0", "1"])
    parser.add_argument("--model", help="use this one, or make it there")
    parser.add_argument("--calls", help="write cProfile statistics to FILE.BATCH instead")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(args.model or folder)
        model = str(path) if (path / "config.json").exists() else make_model(path)
        for workload in args.workload:
            WORKLOADS[workload](model, args)


if __name__ == "__main__":
    main()
