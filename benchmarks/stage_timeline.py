"""How busy pipeline stages are: an engine under load, and what its timeline says of each stage.

python benchmarks/stage_timeline.py [--stages 2] [--partition 16,12] [--only decode,mixed]

The model has the shape of Qwen3-0.6B in bfloat16, and each stage one thread. `decode` is 32
requests with short prompts, `mixed` is 64 with prompts of 16 to 256 tokens, of which 32 run at a
time. Figures are of the time in which 32 requests run:

in flight   share of the time in which as many steps are in flight as there are stages, or more
together    share of the time in which all stages compute
busy        share of the time in which a stage computes: its steps, less what they wait in `receive`
step        time that a step computes on a stage, median and longest, in milliseconds
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.compare.models import SHAPES, ensure  # noqa: E402

AT_A_TIME = 32
WRITTEN_S = 1.0  # the timeline is written twice a second
Event = dict[str, Any]
Requests = list[tuple[int, int]]  # tokens of the prompt, and of the output


class Span(NamedTuple):
    """Microseconds."""

    begin: float
    end: float


class StageFigures(NamedTuple):
    busy: float
    median_ms: float
    longest_ms: float
    num_steps: int


class Figures(NamedTuple):
    seconds: float
    in_flight: float
    together: float
    stages: list[StageFigures]


def decode_load() -> Requests:
    return [(16, 48)] * AT_A_TIME


def mixed_load() -> Requests:
    dice = random.Random(0)
    return [(dice.randrange(16, 257), dice.randrange(16, 49)) for _ in range(2 * AT_A_TIME)]


LOADS = {"decode": decode_load, "mixed": mixed_load}


def figures_of(events: Sequence[Event], num_stages: int, num_running: int) -> Figures:
    """Figures of an engine with one rank per stage, while `num_running` requests ran.

    `events`: those of all processes. Raises ValueError if so many never ran.
    """
    window = window_of(events, num_running)
    length = window.end - window.begin
    names = track_names(events)
    steps = [[*computing(events, names, f"rank {stage}")] for stage in range(num_stages)]
    return Figures(
        length / 1e6,
        share_of(flights(events), window, num_stages),
        share_of((span for some in steps for spans in some for span in spans), window, num_stages),
        [stage_figures(some, window) for some in steps],
    )


def window_of(events: Iterable[Event], num_running: int) -> Span:
    """From when so many requests ran first until fewer did."""
    counts = sorted(
        (event["ts"], event["args"]["running"])
        for event in events
        if event["ph"] == "C" and event["name"] == "requests"
    )
    begins = [moment for moment, running in counts if running >= num_running]
    if not begins:
        raise ValueError(f"{num_running} requests never ran at a time")
    fewer = [moment for moment, running in counts if moment > begins[0] and running < num_running]
    # Requests that end are replaced a step later: the last gap is the end of the load.
    later = [moment for moment in fewer if moment > begins[-1]]
    return Span(begins[0], (later or [max(moment for moment, _ in counts)])[0])


def track_names(events: Iterable[Event]) -> dict[tuple[int, int], str]:
    """Names of tracks, by process and number."""
    return {
        (event["pid"], event["tid"]): event["args"]["name"]
        for event in events
        if event["ph"] == "M" and event["name"] == "thread_name"
    }


def computing(
    events: Iterable[Event], names: dict[tuple[int, int], str], track: str
) -> Iterator[list[Span]]:
    """Of each step of a rank, the spans in which it computed and did not receive."""
    own = [e for e in events if e["ph"] == "X" and names[e["pid"], e["tid"]] == track]
    receives = sorted(span_of(event) for event in own if event["name"] == "receive")
    for step in sorted(span_of(event) for event in own if event["name"] == "step"):
        spans, begin = [], step.begin
        for receive in receives:
            if step.begin <= receive.begin < step.end:
                spans.append(Span(begin, receive.begin))
                begin = receive.end
        yield [*spans, Span(begin, step.end)]


def span_of(event: Event) -> Span:
    return Span(event["ts"], event["ts"] + event["dur"])


def flights(events: Iterable[Event]) -> Iterator[Span]:
    """From plan to tokens, of each step."""
    begun: dict[int, float] = {}
    for event in sorted((e for e in events if e["ph"] in "be"), key=lambda e: float(e["ts"])):
        if event["ph"] == "b":
            begun[event["id"]] = event["ts"]
        else:
            yield Span(begun.pop(event["id"]), event["ts"])


def share_of(spans: Iterable[Span], window: Span, number: int) -> float:
    """Share of the window in which `number` spans or more overlap."""
    changes = []
    for span in spans:
        begin, end = max(span.begin, window.begin), min(span.end, window.end)
        if begin < end:
            changes += [(begin, 1), (end, -1)]
    overlapping, since, total = 0, window.begin, 0.0
    for moment, change in sorted(changes):
        if overlapping >= number:
            total += moment - since
        overlapping, since = overlapping + change, moment
    return total / (window.end - window.begin)


def stage_figures(steps: Iterable[list[Span]], window: Span) -> StageFigures:
    within = [
        spans for spans in steps if window.begin <= spans[0].begin and spans[-1].end <= window.end
    ]
    taken = [sum(span.end - span.begin for span in spans) / 1e3 for spans in within]
    busy = share_of((span for spans in steps for span in spans), window, 1)
    return StageFigures(busy, statistics.median(taken), max(taken), len(taken))


def record(model: Path, num_stages: int, load: Requests, directory: Path) -> list[Event]:
    """Run a load, after a few tokens that are not recorded, and read its timeline."""
    from vllm import LLM, SamplingParams

    llm = LLM(
        str(model),
        dtype="bfloat16",
        pipeline_parallel_size=num_stages,
        max_model_len=512,
        max_num_seqs=AT_A_TIME,
        max_num_batched_tokens=2048,
        enable_prefix_caching=False,
        kv_cache_memory_bytes=1 << 30,
        use_tqdm_on_load=False,
    )
    dice = random.Random(1)
    prompts = [
        {"prompt_token_ids": [dice.randrange(3, 500) for _ in range(length)]} for length, _ in load
    ]
    params = [
        SamplingParams(temperature=0, max_tokens=output, ignore_eos=True, detokenize=False)
        for _, output in load
    ]
    few = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, detokenize=False)
    llm.generate(prompts[:4], few, use_tqdm=False)
    began = time.perf_counter_ns() / 1e3
    llm.generate(prompts, params, use_tqdm=False)
    time.sleep(WRITTEN_S)
    llm.llm_engine.shutdown()
    events = [
        event
        for file in sorted(directory.glob("vllm-*.trace.json"))
        for event in json.loads(file.read_text())
    ]
    return [event for event in events if event["ph"] == "M" or event["ts"] >= began]


def tell(name: str, found: Figures) -> None:
    print(
        f"{name:8} {found.seconds:6.2f} s  in flight {found.in_flight:6.1%}  "
        f"together {found.together:6.1%}"
    )
    for number, stage in enumerate(found.stages):
        print(
            f"  stage {number}  busy {stage.busy:6.1%}  step {stage.median_ms:7.2f} "
            f"(longest {stage.longest_ms:.2f}), {stage.num_steps} steps",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--stages", type=int, default=2)
    parser.add_argument("--partition", default="", help="Layers of each stage: 16,12.")
    parser.add_argument("--only", default=",".join(LOADS), help=f"Of {', '.join(LOADS)}.")
    parser.add_argument(
        "--models", type=Path, default=Path(tempfile.gettempdir()) / "pairs", help="For models."
    )
    args = parser.parse_args()
    model = ensure(SHAPES["qwen3-0.6b"], args.models)
    os.environ |= {
        "VLLM_PROFILER_ENABLED": "1",
        "VLLM_PP_LAYER_PARTITION": args.partition,
        "VLLM_LOGGING_LEVEL": "ERROR",
        "OMP_NUM_THREADS": "1",
    }
    for name in args.only.split(","):
        with tempfile.TemporaryDirectory() as folder:
            os.environ["VLLM_TORCH_PROFILER_DIR"] = folder
            events = record(model, args.stages, LOADS[name](), Path(folder))
            tell(name, figures_of(events, args.stages, AT_A_TIME))


if __name__ == "__main__":
    main()
