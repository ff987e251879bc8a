"""How much padding does each bucketing strategy of the HPU platform cost on a trace of requests?

python benchmarks/buckets.py [--trace requests.csv] [--requests 4000] [--load 1]
                             [--setup A] [--max-num-seqs 256] [--max-num-batched-tokens 8192] ...

The trace has columns TIMESTAMP, ContextTokens and GeneratedTokens; without one, lengths are drawn
from lognormal distributions fitted to an hour of a chat service, and arrivals are random. Nothing
is computed: requests are batched continuously by a clock of --base-ms per step and --token-us per
token, and every launch is looked up in the buckets of each strategy. The first half of the launches
is what `recorded` chooses its buckets for; figures are of the second half.

`computed / real`: 1.25 means a quarter more than was asked for. `first fit`: the cost of the same
buckets when the first that fits is taken instead of the cheapest.
"""

from __future__ import annotations

import argparse
import csv
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import numpy as np

from vllm.platforms.hpu.bucketing.axes import Limits, default_axes
from vllm.platforms.hpu.bucketing.demand import chosen_buckets
from vllm.platforms.hpu.bucketing.table import (
    Bucket,
    BucketTable,
    decode_buckets,
    decode_cost,
    prompt_buckets,
    prompt_cost,
)

SETUPS = {
    "A": Limits(256, 1, 8192, 32768, 128, 4127),
    "B": Limits(64, 1, 2048, 4096, 128, 2048),
}
STRATEGIES = {"exp": "exponential", "lin": "linear", "pad": "padding-aware"}
# Mean and deviation of the logarithm of lengths, and requests per second, of the fitted hour.
PROMPT_LOG = (6.63, 0.99)
OUTPUT_LOG = (5.02, 0.86)
ARRIVALS_PER_S = 5.5


@dataclass(frozen=True, slots=True)
class Request:
    arrival_s: float
    prompt: int  # tokens
    output: int


@dataclass(frozen=True, slots=True)
class Clock:
    """How long a step takes."""

    base_s: float
    token_s: float


def read_trace(path: Path, number: int) -> list[Request]:
    found: list[Request] = []
    with path.open(newline="", encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            # Fractions of seconds may have more digits than datetime reads.
            time = datetime.fromisoformat(row["TIMESTAMP"][:26].strip()).timestamp()
            lengths = int(row["ContextTokens"]), int(row["GeneratedTokens"])
            found.append(Request(time, *(max(1, length) for length in lengths)))
            if len(found) == number:
                break
    begin = found[0].arrival_s
    return [replace(request, arrival_s=request.arrival_s - begin) for request in found]


def make_trace(number: int, seed: int) -> list[Request]:
    rng = np.random.default_rng(seed)
    arrivals = rng.exponential(1 / ARRIVALS_PER_S, number).cumsum()
    prompts = rng.lognormal(*PROMPT_LOG, number).astype(int) + 1
    outputs = rng.lognormal(*OUTPUT_LOG, number).astype(int) + 1
    return [
        Request(float(arrival), int(prompt), int(output))
        for arrival, prompt, output in zip(arrivals, prompts, outputs, strict=True)
    ]


class Engine:
    """A rough one: prompts in chunks, first come first served; everything admitted will fit."""

    def __init__(self, limits: Limits, clock: Clock) -> None:
        self.limits = limits
        self.clock = clock
        self.lengths = np.zeros(0, np.int64)  # tokens in the cache, of those that decode
        self.left = np.zeros(0, np.int64)  # tokens that they still want
        self.reserved = np.zeros(0, np.int64)  # blocks
        self.free_blocks = limits.num_blocks - 1
        self.filling: deque[tuple[int, int, int]] = deque()  # prompt, computed, output

    def run(self, requests: Sequence[Request]) -> Iterator[Bucket]:
        """Demands, launch by launch."""
        waiting, now_s = deque(requests), 0.0
        while waiting or self.filling or len(self.left):
            if not self.filling and not len(self.left):
                now_s = max(now_s, waiting[0].arrival_s)
            while waiting and waiting[0].arrival_s <= now_s and self._admits(waiting[0]):
                waiting.popleft()
            num_tokens = len(self.left)
            if num_tokens:
                yield self._decode()
            for demand in self._prefill(self.limits.max_num_batched_tokens - num_tokens):
                num_tokens += demand.query_len
                yield demand
            now_s += self.clock.base_s + num_tokens * self.clock.token_s

    def _admits(self, request: Request) -> bool:
        limits = self.limits
        prompt = min(request.prompt, limits.max_model_len - 1)
        output = min(request.output, limits.max_model_len - prompt)
        blocks = -(-(prompt + output) // limits.block_size)
        num_running = len(self.left) + len(self.filling)
        if num_running == limits.max_num_seqs or blocks > self.free_blocks:
            return False
        self.free_blocks -= blocks
        self.filling.append((prompt, 0, output))
        return True

    def _decode(self) -> Bucket:
        blocks = int((self.lengths // self.limits.block_size + 1).sum())
        demand = Bucket(len(self.left), 1, blocks)
        self.lengths += 1
        self.left -= 1
        ended = self.left == 0
        if ended.any():
            self.free_blocks += int(self.reserved[ended].sum())
            self.lengths, self.left, self.reserved = (
                column[~ended] for column in (self.lengths, self.left, self.reserved)
            )
        return demand

    def _prefill(self, budget: int) -> Iterator[Bucket]:
        while self.filling and budget > 0:
            prompt, computed, output = self.filling.popleft()
            count = min(budget, prompt - computed)
            budget -= count
            context = -(-computed // self.limits.block_size)
            if count == 1:  # one token decodes
                yield Bucket(1, 1, computed // self.limits.block_size + 1)
            else:
                yield Bucket(1, count, context)
            if computed + count < prompt:
                self.filling.appendleft((prompt, computed + count, output))
            elif output > 1:
                self.lengths = np.append(self.lengths, prompt)
                self.left = np.append(self.left, output - 1)
                blocks = -(-(prompt + output) // self.limits.block_size)
                self.reserved = np.append(self.reserved, blocks)
            else:
                self.free_blocks += -(-(prompt + output) // self.limits.block_size)


def halves(demands: Iterable[Bucket]) -> tuple[Counter[Bucket], Counter[Bucket]]:
    every = list(demands)
    middle = len(every) // 2
    return Counter(every[:middle]), Counter(every[middle:])


def generated(strategy: str, limits: Limits) -> BucketTable:
    axes = default_axes(strategy, limits)
    prompt, decode = (make(axes, strategy, limits) for make in (prompt_buckets, decode_buckets))
    return BucketTable(prompt, decode, limits)


def figures(table: BucketTable, demands: Mapping[Bucket, int]) -> list[str]:
    """Numbers of buckets, computed / real of tokens and blocks by phase, what first fit costs."""
    cells = [str(len(table.prompt)), str(len(table.decode))]
    size = table.limits.block_size
    for is_decode in (False, True):
        real, computed = np.zeros(2), np.zeros(2)
        cheapest = first = 0
        for demand, count in demands.items():
            if (demand.query_len == 1) != is_decode:
                continue
            if is_decode:
                found = table.find_decode(demand.rows, demand.blocks)
            else:
                found = table.find_prompt(*demand)
            weights = [(b.rows * b.query_len, b.blocks) for b in (demand, found)]
            real += np.multiply(weights[0], count)
            computed += np.multiply(weights[1], count)
            buckets = table.decode if is_decode else table.prompt
            other = next(bucket for bucket in buckets if bucket.covers(demand))
            costs = [decode_cost(b) if is_decode else prompt_cost(b, size) for b in (found, other)]
            cheapest += costs[0] * count
            first += costs[1] * count
        cells += [f"{ratio:.3f}" for ratio in computed / np.maximum(real, 1)]
        cells.append(f"{100 * (first / max(1, cheapest) - 1):+.1f}%")
    return cells


HEAD = (
    "strategy", "prompt buckets", "decode buckets",
    "prompt tokens", "prompt blocks", "prompt first fit",
    "decode rows", "decode blocks", "decode first fit",
)  # fmt: skip


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--trace", type=Path)
    parser.add_argument("--requests", type=int, default=4000)
    parser.add_argument("--load", type=float, default=1.0, help="times the trace's arrivals")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--base-ms", type=float, default=20.0)
    parser.add_argument("--token-us", type=float, default=40.0)
    parser.add_argument("--setup", choices=SETUPS, default="B", help="what the flags below change")
    for name in (
        "max-num-seqs",
        "max-num-batched-tokens",
        "max-model-len",
        "block-size",
        "num-blocks",
    ):
        parser.add_argument(f"--{name}", type=int)
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    given = {
        name: value
        for name, value in vars(arguments).items()
        if name in Limits.__slots__ and value is not None
    }
    limits = replace(SETUPS[arguments.setup], **given)
    if arguments.trace is None:
        requests = make_trace(arguments.requests, arguments.seed)
    else:
        requests = read_trace(arguments.trace, arguments.requests)
    requests = [replace(r, arrival_s=r.arrival_s / arguments.load) for r in requests]
    engine = Engine(limits, Clock(arguments.base_ms / 1e3, arguments.token_us / 1e6))
    learned, demands = halves(engine.run(requests))
    tables = {name: generated(strategy, limits) for name, strategy in STRATEGIES.items()}
    tables["recorded"] = BucketTable(*chosen_buckets(learned, tables["exp"]), limits)
    num_prompts = sum(count for demand, count in demands.items() if demand.query_len > 1)
    print(limits)
    print(f"{num_prompts} prompt and {demands.total() - num_prompts} decode launches\n")
    print("|", " | ".join(HEAD), "|")
    print("| --- " * len(HEAD) + "|")
    for name, table in tables.items():
        print("|", " | ".join([name, *figures(table, demands)]), "|")


if __name__ == "__main__":
    main()
