"""Users who talk to a server of two cores, once per rule of --data-parallel-balance, in pairs.

python benchmarks/conversations.py [--pairs 12] [--users 16] [--turns 6] [--blocks 900]
    [--model tiny] [--api-servers 1]

Each user asks, waits for the answer and asks again with all that was said before. The caches of
both cores together hold the histories of all users, and one alone does not. Two servers run, of
which one is measured at a time. A pair is a run on each, with least-loaded as `before` and
prefix-cache as `after`; ratios, intervals and orders of start are those of benchmarks/pairs.py.

first    seconds to the first token, mean
p99      the same, 99th percentile
total    seconds until all users are done
missed   tokens of prompts that were not found in a prefix cache
"""

from __future__ import annotations

import argparse
import asyncio
import math
import random
import re
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import httpx  # noqa: E402
from tqdm import tqdm  # noqa: E402

from benchmarks.compare.client import request_of, stream  # noqa: E402
from benchmarks.compare.models import SHAPES, ensure  # noqa: E402
from benchmarks.pairs import ROUNDS, report, server  # noqa: E402

RULES = ("least-loaded", "prefix-cache")
ANSWER = 7  # the only token that answers may have, so that they are known here
BLOCK_SIZE = 16
COUNTER = re.compile(r"^vllm:prefix_cache_(queries|hits)(?:_total)?\{[^}]*\} (\S+)$", re.MULTILINE)
Figures = dict[str, float]


class Talk:
    """What the users of one run say."""

    def __init__(self, args: argparse.Namespace, seed: int) -> None:
        self._args = args
        self._dice = random.Random(seed)
        self.firsts: list[float] = []

    async def run(self, port: int) -> None:
        await asyncio.gather(*(self._user(port) for _ in range(self._args.users)))

    async def _user(self, port: int) -> None:
        args, dice = self._args, self._dice
        history = self._words(args.prompt)
        await asyncio.sleep(dice.uniform(0, 2 * args.think))
        for _ in range(args.turns):
            history += self._words(args.question)
            request = request_of(history, args.answer, "m", allowed_token_ids=[ANSWER])
            answer = await stream(port, request)
            if answer.problem:
                raise SystemExit(f"a request failed: {answer.problem}")
            self.firsts.append(answer.first_s)
            history += [ANSWER] * args.answer
            await asyncio.sleep(dice.expovariate(1 / args.think))

    def _words(self, mean: int) -> list[int]:
        count = self._dice.randint(mean // 2, mean * 3 // 2)
        return [self._dice.randrange(8, 2000) for _ in range(count)]


def missed_tokens(url: str) -> float:
    """Looked up in the prefix caches of all cores so far, and not found."""
    counts: dict[str, float] = defaultdict(float)
    for name, value in COUNTER.findall(httpx.get(f"{url}/metrics").text):
        counts[name] += float(value)
    if not counts:
        raise SystemExit("the server has no counters of the prefix cache")
    return counts["queries"] - counts["hits"]


def measure(args: argparse.Namespace, url: str, seed: int) -> Figures:
    talk = Talk(args, seed)
    missed, started_s = missed_tokens(url), time.perf_counter()
    asyncio.run(talk.run(int(url.rpartition(":")[2])))
    total_s = time.perf_counter() - started_s
    firsts = sorted(talk.firsts)
    return {
        "first": sum(firsts) / len(firsts),
        "p99": firsts[len(firsts) * 99 // 100],
        "total": total_s,
        "missed": missed_tokens(url) - missed,
    }


def start(args: argparse.Namespace, model: Path, rule: str) -> AbstractContextManager[str]:
    options = {
        "--data-parallel-size": 2,
        "--data-parallel-balance": rule,
        "--api-server-count": args.api_servers,
        "--max-model-len": 4096,
        "--max-num-seqs": 64,
        "--block-size": BLOCK_SIZE,
        "--num-gpu-blocks-override": args.blocks,
    }
    return server(ROOT, model, [str(word) for option in options.items() for word in option])


def pairs(args: argparse.Namespace, model: Path) -> Iterator[tuple[str, list[tuple[float, float]]]]:
    """Of each figure: geometric means of a pair in either order of start."""
    found: dict[tuple[str, bool], list[tuple[float, float]]] = defaultdict(list)
    seeds = iter(range(1 << 30))
    for number in range(ROUNDS):
        is_before_first = number % 2 == 0
        with ExitStack() as stack:
            urls = {}
            for which in (0, 1) if is_before_first else (1, 0):
                urls[which] = stack.enter_context(start(args, model, RULES[which]))
            for _ in tqdm(range(-(-2 * args.pairs // ROUNDS)), desc="conversations"):
                order, seed = [0, 1], next(seeds)
                random.shuffle(order)
                taken = {which: measure(args, urls[which], seed) for which in order}
                for name in taken[0]:
                    found[name, is_before_first].append((taken[0][name], taken[1][name]))
    for name, is_before_first in found:
        if is_before_first:
            both = zip(found[name, True], found[name, False], strict=True)
            yield name, [(math.sqrt(a[0] * b[0]), math.sqrt(a[1] * b[1])) for a, b in both]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--model", choices=SHAPES, default="tiny")
    parser.add_argument("--api-servers", type=int, default=1)
    parser.add_argument("--blocks", type=int, default=900, help="KV cache of each core.")
    parser.add_argument("--users", type=int, default=16)
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--prompt", type=int, default=600, help="Tokens, first turn; mean.")
    parser.add_argument("--question", type=int, default=100, help="Tokens; mean.")
    parser.add_argument("--answer", type=int, default=40, help="Tokens.")
    parser.add_argument("--think", type=float, default=0.3, help="Seconds between turns; mean.")
    parser.add_argument(
        "--models", type=Path, default=Path(tempfile.gettempdir()) / "pairs", help="For models."
    )
    args = parser.parse_args()
    for name, values in pairs(args, ensure(SHAPES[args.model], args.models)):
        report(name, values)


if __name__ == "__main__":
    main()
