"""Two source trees side by side: does a change cost speed? Pairs in turn, ratios, their interval.

python benchmarks/pairs.py --before TREE --after TREE [--pairs 20] [--only decode,start]

Both trees run in this Python environment, each with its own `vllm` (built in place). A pair is one
measurement of each tree, the order drawn by lot; a ratio above 1 means that `after` takes more. Of
two processes the one that was started second may be a tenth faster, whichever tree it runs. So each
pair is made of two: one of processes of which `before` was started first, one of the other order.
The interval is that of the median ratio, of 95 % or a little more, from order statistics.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import httpx  # noqa: E402
from tqdm import tqdm  # noqa: E402

from benchmarks.compare.models import SHAPES, ensure  # noqa: E402

WORKER = Path(__file__).with_name("pairs_worker.py")
LARGE, SMALL = "qwen3-0.6b", "tiny"
LIMIT_S = 600.0
ROUNDS = 4  # pairs of processes
LIMITS = ("--max-model-len", "1024", "--max-num-seqs", "256")


@dataclass(frozen=True, slots=True)
class Workload:
    """What is measured: `rows` prompts of `prompt` tokens, `output` tokens each."""

    model: str
    rows: int
    prompt: int
    output: int


OFFLINE = {
    "decode": Workload(LARGE, 1, 16, 24),
    "prefill": Workload(LARGE, 1, 512, 1),
    "tiny-1": Workload(SMALL, 1, 16, 400),
    "tiny-256": Workload(SMALL, 256, 16, 48),
}
HTTP = {
    "http-1": Workload(SMALL, 1, 16, 400),
    "http-256": Workload(SMALL, 256, 16, 48),
}
STARTS = ("start", "peak")  # seconds, and GiB of the process, of the large model


def environment(tree: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(tree), "VLLM_LOGGING_LEVEL": "ERROR"}


class Worker:
    """A process that holds one model of one tree and measures when it is told to."""

    def __init__(
        self,
        tree: Path,
        model: Path,
        options: Mapping[str, Any] | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        """`options` of the engine, `variables` of the environment."""
        started = time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, str(WORKER), str(model), json.dumps(options or {})],
            env={**environment(tree), **(variables or {})},
            cwd=tree,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._read()
        self.start_s = time.monotonic() - started

    def seconds(self, workload: Workload) -> float:
        return float(self._ask(rows=workload.rows, prompt=workload.prompt, output=workload.output))

    def peak_gib(self) -> float:
        return float(self._ask(peak=True)) / (1 << 20)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(LIMIT_S)

    def _ask(self, **command: Any) -> Any:
        assert self._process.stdin is not None
        print(json.dumps(command), file=self._process.stdin, flush=True)
        return self._read()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a worker ended with exit code {self._process.wait()}")
        return json.loads(line)


@contextmanager
def worker(tree: Path, model: Path) -> Iterator[Worker]:
    started = Worker(tree, model)
    try:
        yield started
    finally:
        started.close()


@contextmanager
def server(tree: Path, model: Path, limits: Sequence[str] = LIMITS) -> Iterator[str]:
    """The address of a server of the tree. `limits` are more arguments."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(model)]
    options = ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", "m"]
    process = subprocess.Popen(
        [*command, *options, *limits, "--disable-log-stats"],
        env=environment(tree),
        cwd=tree,
        stdout=subprocess.DEVNULL,
    )
    try:
        url = f"http://127.0.0.1:{port}"
        until = time.monotonic() + LIMIT_S
        while True:
            try:
                if httpx.get(f"{url}/health").status_code == 200:
                    break
            except httpx.TransportError:
                pass
            if process.poll() is not None or time.monotonic() > until:
                raise SystemExit(f"the server of {tree} did not start")
            time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait(LIMIT_S)


def http_seconds(url: str, workload: Workload) -> float:
    """Until all rows are answered, each a request of its own."""

    async def run() -> float:
        limits = httpx.Limits(max_connections=workload.rows)
        async with httpx.AsyncClient(base_url=url, timeout=LIMIT_S, limits=limits) as client:

            async def one() -> None:
                body = {
                    "model": "m",
                    "prompt": [random.randrange(3, 500) for _ in range(workload.prompt)],
                    "max_tokens": workload.output,
                    "temperature": 0,
                    "ignore_eos": True,
                }
                (await client.post("/v1/completions", json=body)).raise_for_status()

            started = time.perf_counter()
            await asyncio.gather(*(one() for _ in range(workload.rows)))
            return time.perf_counter() - started

    return asyncio.run(run())


def pairs_of(
    measures: Sequence[Callable[[], float]], count: int, name: str
) -> list[tuple[float, float]]:
    """`count` pairs (before, after), after one of each that is not counted."""
    for measure in measures:
        measure()
    found = []
    for _ in tqdm(range(count), desc=name):
        order = [0, 1]
        random.shuffle(order)
        taken = {which: measures[which]() for which in order}
        found.append((taken[0], taken[1]))
    return found


def in_rounds(
    start: Callable[[Any], AbstractContextManager[Any]],
    measure: Callable[[Any, Workload], float],
    loads: Mapping[str, Workload],
    sides: Sequence[Any],
    count: int,
) -> None:
    """Report `count` pairs of each load: geometric means of one in either order of start.

    `sides` are what `start` starts, before and after: two trees, or whatever else is compared.
    """
    pairs: dict[tuple[str, bool], list[tuple[float, float]]] = defaultdict(list)
    for number in range(ROUNDS):
        is_before_first = number % 2 == 0
        with ExitStack() as stack:
            running: dict[int, Any] = {}
            for which in (0, 1) if is_before_first else (1, 0):
                running[which] = stack.enter_context(start(sides[which]))
            for name, load in loads.items():
                measures = [partial(measure, running[which], load) for which in (0, 1)]
                found = pairs_of(measures, -(-2 * count // ROUNDS), name)
                pairs[name, is_before_first] += found
    for name in loads:
        both = zip(pairs[name, True], pairs[name, False], strict=True)
        report(name, [(math.sqrt(a[0] * b[0]), math.sqrt(a[1] * b[1])) for a, b in both])


def interval(ratios: list[float]) -> tuple[float, float]:
    """Of the median, at 95 % or the next that order statistics give."""
    ordered, n = sorted(ratios), len(ratios)
    outside = 0.0
    for k in range(n // 2):
        outside += 2 * math.comb(n, k) / 2**n
        if outside > 0.05:
            return ordered[max(k - 1, 0)], ordered[n - max(k, 1)]
    return ordered[0], ordered[-1]


def report(name: str, pairs: list[tuple[float, float]]) -> None:
    before, after = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratios = [b / a for a, b in pairs]
    low, high = interval(ratios)
    median = statistics.median(ratios)
    print(
        f"{name:10} before {before:9.4f}  after {after:9.4f}  "
        f"ratio {median:.3f}  95 % [{low:.3f}, {high:.3f}]  pairs {len(pairs)}",
        flush=True,
    )


def measure_starts(trees: list[Path], model: Path, count: int) -> None:
    rows: dict[str, list[tuple[float, float]]] = {name: [] for name in STARTS}
    for number in tqdm(range(count + 1), desc="start"):
        taken: dict[int, tuple[float, float]] = {}
        order = [0, 1]
        random.shuffle(order)
        for which in order:
            with worker(trees[which], model) as started:
                taken[which] = (started.start_s, started.peak_gib())
        if number:  # the first reads files that the second finds in memory
            for i, name in enumerate(STARTS):
                rows[name].append((taken[0][i], taken[1][i]))
    for name in STARTS:
        report(name, rows[name])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--before", type=Path, required=True, help="Source tree to compare with.")
    parser.add_argument("--after", type=Path, default=ROOT, help="Source tree of the change.")
    parser.add_argument("--pairs", type=int, default=20)
    names = [*OFFLINE, *HTTP, "start"]
    parser.add_argument("--only", default=",".join(names), help=f"Of {', '.join(names)}.")
    parser.add_argument(
        "--models", type=Path, default=Path(tempfile.gettempdir()) / "pairs", help="For models."
    )
    args = parser.parse_args()
    trees = [args.before.resolve(), args.after.resolve()]
    wanted = args.only.split(",")
    if unknown := set(wanted) - set(names):
        parser.error(f"--only {', '.join(sorted(unknown))}: choose of {', '.join(names)}")
    models = {name: ensure(SHAPES[name], args.models) for name in (LARGE, SMALL)}
    for model in (LARGE, SMALL):
        loads = {n: w for n, w in OFFLINE.items() if n in wanted and w.model == model}
        if loads:
            start = partial(worker, model=models[model])
            in_rounds(start, Worker.seconds, loads, trees, args.pairs)
    if loads := {n: w for n, w in HTTP.items() if n in wanted}:
        start = partial(server, model=models[SMALL])
        in_rounds(start, http_seconds, loads, trees, args.pairs)
    if "start" in wanted:
        measure_starts(trees, models[LARGE], args.pairs)


if __name__ == "__main__":
    main()
