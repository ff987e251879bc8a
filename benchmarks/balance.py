"""Rules that choose a core for each request, on simulated cores without a model.

python benchmarks/balance.py [--load conversations documents singles hot] [--rule cache least first]
    [--open-tokens 100] [--cores 2] [--front-ends 1] [--seconds 300] [--seeds 3] [--device slow]

A core is the scheduler with its KV cache. A step of it takes the time of a simple machine: so much
for itself, for each token of a prompt and for each row that decodes. Time is simulated, so results
do not depend on the machine that runs this. Loads are

conversations  users who talk: a prompt goes on from the answer before, caches hold a part of all
documents      a few questions about a text, which come shortly one after another
singles        prompts of very different lengths, with nothing in common
hot            prompts that all begin with one long text, and long answers

A line per load and rule: the share of prompt tokens found in prefix caches, the time to the first
token (median and 99th percentile) and to the last (median), all means over the seeds.
"""

from __future__ import annotations

import argparse
import dataclasses
import heapq
import itertools
import random
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from vllm.core.scheduler import Scheduler  # noqa: E402
from vllm.engine.arg_utils import EngineArgs  # noqa: E402
from vllm.engine.balance import (  # noqa: E402
    OPEN_TOKENS,
    Balance,
    CacheBalance,
    FirstDone,
    LeastLoaded,
)
from vllm.engine.routes import ManyFrontEnds  # noqa: E402
from vllm.messages.cache import FullAttention, KVCacheLayout, groups_by_needs  # noqa: E402
from vllm.messages.engine import EngineRequest, FromEngine, StepUpdates  # noqa: E402
from vllm.messages.step import StepPlan, StepResult  # noqa: E402
from vllm.sampling_params import SamplingParams  # noqa: E402

MODEL = ROOT / "examples" / "models" / "tiny-story"  # of which only the configuration is read
BLOCK_SIZE = 16
MAX_MODEL_LEN = 32_768
MESSAGE_S = 0.001  # from one process to another
ANSWER = 7  # the token of which all answers are made
VOCAB = 2000


@dataclass(frozen=True, slots=True)
class Device:
    """What a step takes, in seconds."""

    step_s: float
    prompt_token_s: float
    row_s: float

    def seconds(self, plan: StepPlan) -> float:
        num_rows = int((plan.counts == 1).sum())
        num_prompt_tokens = plan.num_tokens - num_rows
        return self.step_s + num_rows * self.row_s + num_prompt_tokens * self.prompt_token_s


DEVICES = {"fast": Device(0.010, 0.00005, 0.0001), "slow": Device(0.010, 0.0005, 0.001)}
RULES: dict[str, Callable[..., Balance]] = {
    "cache": CacheBalance,
    "first": FirstDone,
    "least": LeastLoaded,
}


class Turn(NamedTuple):
    """A request, and what its user does when the answer is there."""

    prompt: list[int]
    num_output: int
    then: Callable[[], None]


class Timing(NamedTuple):
    first_s: float  # from the request to the first token
    last_s: float


class Agenda:
    """Owner of the simulated time."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()

    def after(self, delay_s: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now_s + delay_s, next(self._numbers), act))

    def run(self, seconds: float) -> None:
        while self._events and self._events[0][0] <= seconds:
            self.now_s, _, act = heapq.heappop(self._events)
            act()


class SimulatedCore:
    """A scheduler, and steps that take simulated time."""

    def __init__(self, index: int, agenda: Agenda, device: Device, cluster: Cluster) -> None:
        self.index = index
        self.num_front_ends = len(cluster.balances)
        self.scheduler = Scheduler(cluster.config, cluster.layout)
        self.routes = ManyFrontEnds(self, clock=lambda: agenda.now_s)
        self._agenda, self._device, self._cluster = agenda, device, cluster
        self._is_busy = False

    def take(self, front_end: int, request: EngineRequest) -> None:
        self.routes.take(front_end, request)
        self.scheduler.add(request)
        if not self._is_busy:
            self._begin()

    def send(self, message: FromEngine, front_end: int) -> None:
        assert isinstance(message, StepUpdates)
        message.core = self.index
        self._agenda.after(MESSAGE_S, partial(self._cluster.hear, front_end, message))

    def _begin(self) -> None:
        plan = self.scheduler.schedule()
        self._is_busy = plan is not None
        if plan is not None:
            self._agenda.after(self._device.seconds(plan), partial(self._end, plan))

    def _end(self, plan: StepPlan) -> None:
        drawn = np.full(int(plan.samples.sum()), ANSWER, np.int32)
        committed = self.scheduler.commit(plan, StepResult(plan.step, drawn))
        stats, news = self.scheduler.snapshot(), self.scheduler.kv.take_news()
        step = StepUpdates(committed.updates, stats, self._agenda.now_s, news=news)
        step.slots, step.token_ids = committed.slots, committed.token_ids
        self.routes.send(step)
        self._begin()


class Cluster:
    """Cores, and front ends that choose one for each request."""

    def __init__(self, agenda: Agenda, args: argparse.Namespace, rule: str, num_blocks: int):
        engine_args: dict[str, Any] = {
            "model": str(MODEL),
            "max_num_seqs": args.max_num_seqs,
            "max_num_batched_tokens": args.step_tokens,
            "block_size": BLOCK_SIZE,
            "data_parallel_size": max(2, args.cores),
            "data_parallel_balance": "least-loaded" if rule == "least" else "prefix-cache",
        }
        config = EngineArgs(**engine_args).create_engine_config()
        model = dataclasses.replace(config.model, max_model_len=MAX_MODEL_LEN)
        self.config = dataclasses.replace(config, model=model)
        spec = FullAttention(BLOCK_SIZE, num_kv_heads=1, head_dim=8, value_dim=8, dtype_bytes=4)
        self.layout = KVCacheLayout(num_blocks, groups_by_needs({"layer": spec}))
        options = {} if rule == "least" else {"open_tokens": args.open_tokens}
        self.balances = [
            RULES[rule]([num_blocks] * args.cores, BLOCK_SIZE, **options)
            for _ in range(args.front_ends)
        ]
        device = DEVICES[args.device]
        self.cores = [SimulatedCore(i, agenda, device, self) for i in range(args.cores)]
        self.timings: list[Timing] = []
        self._agenda = agenda
        self._usable = range(args.cores)
        self._open: dict[str, tuple[Turn, float, float]] = {}  # turn, begin, first token
        self._names = map(str, itertools.count())
        self._dice = random.Random(0)

    def ask(self, turn: Turn) -> None:
        front_end = self._dice.randrange(len(self.balances))
        params = SamplingParams(max_tokens=turn.num_output, ignore_eos=True, seed=0)
        name = next(self._names)
        request = EngineRequest(name, turn.prompt, params, 0.0)
        core, num_uncached = self.balances[front_end].place(request, self._usable)
        request = EngineRequest(name, turn.prompt, params, 0.0, num_uncached=num_uncached)
        self._open[name] = turn, self._agenda.now_s, 0.0
        self._agenda.after(MESSAGE_S, partial(self.cores[core].take, front_end, request))

    def hear(self, front_end: int, step: StepUpdates) -> None:
        self.balances[front_end].update(step)
        now_s = self._agenda.now_s
        for update in step.updates:
            turn, begin_s, first_s = self._open[update.request_id]
            if update.token_ids and not first_s:
                first_s = now_s - begin_s
                self._open[update.request_id] = turn, begin_s, first_s
            if update.finish_reason is not None:
                del self._open[update.request_id]
                self.timings.append(Timing(first_s, now_s - begin_s))
                turn.then()

    def lookups(self) -> tuple[int, int]:
        """Tokens looked up in the prefix caches so far, and tokens found."""
        stats = [core.scheduler.snapshot() for core in self.cores]
        return sum(s.prefix_queries for s in stats), sum(s.prefix_hits for s in stats)


# -- loads ----------------------------------------------------------------------------------------


class Load:
    """Users of a cluster. `blocks` is the KV cache of a core that goes with them."""

    blocks = 0

    def __init__(self, agenda: Agenda, cluster: Cluster, dice: random.Random, scale: float) -> None:
        """`scale`: how busy the cores are to be, 1 being normal."""
        self.agenda, self.cluster, self.dice, self.scale = agenda, cluster, dice, scale

    def tokens(self, low: int, high: int) -> list[int]:
        return [self.dice.randrange(8, VOCAB) for _ in range(self.dice.randint(low, high))]

    def begin(self) -> None:
        raise NotImplementedError

    def every(self, mean_s: float, act: Callable[[], None]) -> None:
        """At random moments from now on."""

        def once() -> None:
            act()
            self.agenda.after(self.dice.expovariate(self.scale / mean_s), once)

        self.agenda.after(self.dice.expovariate(self.scale / mean_s), once)


class Conversations(Load):
    """A fixed number of users. Each begins a new conversation where one ends."""

    blocks = 8000
    num_users = 110
    think_s = 5.0

    def begin(self) -> None:
        self.systems = [self.tokens(800, 1200) for _ in range(8)]
        for _ in range(round(self.num_users * self.scale)):
            self.agenda.after(self.dice.uniform(0, 2 * self.think_s), self._open)

    def _open(self) -> None:
        self._turn(list(self.dice.choice(self.systems)), self.dice.randint(2, 12))

    def _turn(self, history: list[int], num_left: int) -> None:
        prompt = history + self.tokens(20, 400)
        num_output = self.dice.randint(50, 250)

        def then() -> None:
            self.agenda.after(self.dice.expovariate(1 / self.think_s), after)

        def after() -> None:
            if num_left == 1:
                self._open()
            else:
                self._turn(prompt + [ANSWER] * num_output, num_left - 1)

        self.cluster.ask(Turn(prompt, num_output, then))


class Documents(Load):
    """Texts come at random moments, each with some questions within seconds."""

    blocks = 8000

    def begin(self) -> None:
        self.every(0.4, self._open)

    def _open(self) -> None:
        text, delay_s = self.tokens(2000, 8000), 0.0
        for _ in range(self.dice.randint(2, 8)):
            prompt = text + self.tokens(20, 60)
            turn = Turn(prompt, self.dice.randint(50, 150), lambda: None)
            self.agenda.after(delay_s, partial(self.cluster.ask, turn))
            delay_s += self.dice.expovariate(1.0)


class Singles(Load):
    """Requests come at random moments: most prompts are short, and some are very long."""

    blocks = 8000

    def begin(self) -> None:
        self.every(0.09, self._ask)

    def _ask(self) -> None:
        length = min(16_000, int(self.dice.lognormvariate(6.0, 1.5)) + 1)
        turn = Turn(self.tokens(length, length), self.dice.randint(20, 300), lambda: None)
        self.cluster.ask(turn)


class Hot(Load):
    """All prompts begin with one text, which a core has by the time the others come."""

    blocks = 8000

    def begin(self) -> None:
        self.text = self.tokens(8000, 8000)
        self._ask()
        self.agenda.after(3.0, lambda: self.every(0.07, self._ask))

    def _ask(self) -> None:
        num_output = min(2000, int(self.dice.lognormvariate(5.5, 0.8)) + 1)
        self.cluster.ask(Turn(self.text + self.tokens(20, 200), num_output, lambda: None))


LOADS: dict[str, type[Load]] = {
    "conversations": Conversations,
    "documents": Documents,
    "singles": Singles,
    "hot": Hot,
}


# -- results --------------------------------------------------------------------------------------


class Figures(NamedTuple):
    hit_rate: float
    first_median_s: float
    first_p99_s: float
    last_median_s: float
    num_requests: float


def simulate(args: argparse.Namespace, load: str, rule: str, seed: int) -> Figures:
    agenda = Agenda()
    kind = LOADS[load]
    cluster = Cluster(agenda, args, rule, args.blocks or kind.blocks)
    kind(agenda, cluster, random.Random(seed), args.scale).begin()
    agenda.run(args.seconds * args.warm_up)
    cluster.timings.clear()
    num_before, num_found_before = cluster.lookups()
    agenda.run(args.seconds)
    num_looked_up, num_found = cluster.lookups()
    firsts = sorted(timing.first_s for timing in cluster.timings)
    return Figures(
        (num_found - num_found_before) / max(1, num_looked_up - num_before),
        statistics.median(firsts),
        firsts[len(firsts) * 99 // 100],
        statistics.median(timing.last_s for timing in cluster.timings),
        len(firsts),
    )


def mean_figures(args: argparse.Namespace, load: str, rule: str) -> Figures:
    found = [simulate(args, load, rule, seed) for seed in range(args.seeds)]
    return Figures(*(statistics.fmean(column) for column in zip(*found, strict=True)))


def lines(args: argparse.Namespace) -> Iterator[str]:
    yield (
        f"{'load':14}{'rule':>12}{'hits':>8}{'first p50':>11}{'p99':>9}{'last p50':>10}"
        f"{'requests':>10}"
    )
    for load in args.load:
        for rule in args.rule:
            for open_tokens in args.open_tokens if rule != "least" else [0]:
                args_of_run = argparse.Namespace(**{**vars(args), "open_tokens": open_tokens})
                found = mean_figures(args_of_run, load, rule)
                name = rule if rule == "least" else f"{rule} {open_tokens}"
                yield (
                    f"{load:14}{name:>12}{found.hit_rate:8.1%}{found.first_median_s:10.3f}s"
                    f"{found.first_p99_s:8.3f}s{found.last_median_s:9.3f}s{found.num_requests:10.0f}"
                )


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--load", nargs="+", choices=LOADS, default=list(LOADS))
    parser.add_argument("--rule", nargs="+", choices=RULES, default=list(RULES))
    parser.add_argument("--open-tokens", nargs="+", type=int, default=[OPEN_TOKENS])
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--front-ends", type=int, default=1)
    parser.add_argument("--device", choices=DEVICES, default="fast")
    parser.add_argument("--scale", type=float, default=1.0, help="Of the load.")
    parser.add_argument("--blocks", type=int, default=0, help="Of each core; 0: as the load says.")
    parser.add_argument("--max-num-seqs", type=int, default=64)
    parser.add_argument("--step-tokens", type=int, default=2048)
    parser.add_argument("--seconds", type=float, default=300.0, help="Simulated.")
    parser.add_argument("--warm-up", type=float, default=0.2, help="Share that is not counted.")
    parser.add_argument("--seeds", type=int, default=3)
    return parser.parse_args(words)


def main() -> None:
    for line in lines(parse()):
        print(line, flush=True)


if __name__ == "__main__":
    main()
