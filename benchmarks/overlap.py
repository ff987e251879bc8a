"""How much of the host's work a timeline shows behind that of the device.

VLLM_PROFILER_ENABLED=1 VLLM_TORCH_PROFILER_DIR=DIR python ... --pipeline-depth 2 ...
python benchmarks/overlap.py DIR

Reads all traces of DIR (docs/profiling.md), of one engine on the CPU, where a rank's span of a step
is its computation, and prints one JSON object:

steps         how many of them decode alone were found
planned_early those that were planned before the rank had finished the step before
hidden        share of the time of `schedule` and `commit` in which the rank was computing
host_us       time of `schedule` and `commit` of a step, median
idle_us       time between two steps of the rank, median
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple


class Span(NamedTuple):
    """Microseconds."""

    begin: float
    end: float

    def within(self, others: Sequence[Span]) -> float:
        """How much of it lies in the others, which do not overlap each other."""
        return sum(max(0.0, min(self.end, o.end) - max(self.begin, o.begin)) for o in others)


def spans(events: Iterable[dict[str, Any]], name: str) -> Iterator[tuple[int, Span]]:
    """The number of the step, and its span of this name."""
    for event in events:
        if event["ph"] == "X" and event["name"] == name:
            yield event["args"]["step"], Span(event["ts"], event["ts"] + event["dur"])


def overlap(events: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The figures of one engine's events."""
    computed = dict(spans(events, "step"))
    scheduled, committed = dict(spans(events, "schedule")), dict(spans(events, "commit"))
    prompts = {
        event["args"]["step"]
        for event in events
        if event["name"] == "schedule" and event["args"]["tokens"] != event["args"]["rows"]
    }
    steps = [
        step
        for step in sorted(computed)
        if {step - 1, step} <= computed.keys() & scheduled.keys() & committed.keys()
        and not {step - 1, step} & prompts
    ]
    if not steps:
        raise SystemExit("no two neighbouring steps that decode are in these traces")
    host = [(scheduled[step], committed[step]) for step in steps]
    of_rank = list(computed.values())
    total = sum(span.end - span.begin for pair in host for span in pair)
    return {
        "steps": len(steps),
        "planned_early": sum(scheduled[s].end < computed[s - 1].end for s in steps),
        "hidden": round(sum(span.within(of_rank) for pair in host for span in pair) / total, 3),
        "host_us": round(statistics.median(sum(s.end - s.begin for s in pair) for pair in host)),
        "idle_us": round(
            statistics.median(computed[s].begin - computed[s - 1].end for s in steps), 1
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("directory", type=Path, help="where the traces are")
    files = sorted(parser.parse_args().directory.glob("vllm-*.trace.json"))
    events = [event for file in files for event in json.loads(file.read_text())]
    print(json.dumps(overlap(events)))


if __name__ == "__main__":
    main()
