"""What is asked of every engine, and the figures that come of it."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from benchmarks.compare.models import NUM_SPECIAL_TOKENS, ModelShape
from benchmarks.compare.session import Session

Figures = dict[str, float]
HOST_MODEL = "tiny"
FIRST_WORD = NUM_SPECIAL_TOKENS + 257  # ids before are bytes and a merge


@dataclass(frozen=True, slots=True)
class Prompts:
    """Random tokens from a seed: the same for every engine, others in every repetition."""

    random: random.Random
    vocab: int

    @classmethod
    def of(cls, shape: ModelShape, workload: str, repetition: int) -> Prompts:
        return cls(random.Random(f"{shape.name} {workload} {repetition}"), shape.vocab)

    def one(self, length: int) -> list[int]:
        return [self.random.randrange(FIRST_WORD, self.vocab) for _ in range(length)]

    def many(self, count: int, length: int) -> list[list[int]]:
        return [self.one(length) for _ in range(count)]


def latency(session: Session, prompts: Prompts) -> Figures:
    """One request of 128 tokens: to the first token, and per token of the 63 after it."""
    first_s = statistics.median(session.generate([prompts.one(128)], 1).seconds for _ in range(3))
    all_s = statistics.median(session.generate([prompts.one(128)], 64).seconds for _ in range(3))
    return {"ttft_ms": 1e3 * first_s, "decode_ms": 1e3 * (all_s - first_s) / 63}


def throughput(session: Session, prompts: Prompts) -> Figures:
    """32 requests of 256 tokens at once, 64 tokens each."""
    session.generate(prompts.many(32, 32), 4)
    seconds = session.generate(prompts.many(32, 256), 64).seconds
    return {"output_tokens_per_s": 32 * 64 / seconds}


def prefill(session: Session, prompts: Prompts) -> Figures:
    """One prompt of 2,048 tokens, up to its first token."""
    session.generate([prompts.one(512)], 1)
    return {"prefill_tokens_per_s": 2048 / session.generate([prompts.one(2048)], 1).seconds}


def prefix(session: Session, prompts: Prompts) -> Figures:
    """16 requests at once that share 1,024 tokens, with 64 of their own, 16 tokens each.

    Warm: the same again with other tokens of their own.
    """
    session.generate(prompts.many(16, 32), 2)
    shared = prompts.one(1024)
    cold_s, warm_s = (
        session.generate([shared + prompts.one(64) for _ in range(16)], 16).seconds
        for _ in range(2)
    )
    return {"prefix_cold_s": cold_s, "prefix_warm_s": warm_s}


def host(session: Session, prompts: Prompts) -> Figures:
    """256 requests of 16 tokens, and one: 128 tokens each of a model that costs nothing."""
    session.generate(prompts.many(256, 16), 8)
    many_s = session.generate(prompts.many(256, 16), 128).seconds
    one_s = statistics.median(session.generate([prompts.one(16)], 128).seconds for _ in range(3))
    return {
        "host_tokens_per_s": 256 * 128 / many_s,
        "host_step_us": 1e6 * many_s / 128,
        "host_one_step_us": 1e6 * one_s / 128,
    }


def start(session: Session, prompts: Prompts) -> tuple[Figures, list[int]]:
    """From before the process to its first token. Returns some tokens of a fixed prompt, too."""
    session.generate([prompts.one(16)], 1)
    startup_s = time.perf_counter() - session.start_s
    session.generate(prompts.many(2, 64), 8)
    return {"startup_s": startup_s}, session.generate([prompts.one(16)], 8).first


Workload = Callable[[Session, Prompts], Figures]
OFFLINE: Mapping[str, Workload] = {
    "latency": latency,
    "prefill": prefill,
    "throughput": throughput,
    "prefix": prefix,
    "host": host,
}
# What comes of every session, whatever else is asked.
EVERY_SESSION = ("startup", "memory")
SERVE = "serve"
WORKLOADS = (*OFFLINE, SERVE, *EVERY_SESSION)


def suits(workload: str, model: str) -> bool:
    """The smallest model is for what the host costs, the others are for the rest."""
    if workload in OFFLINE:
        return (workload == "host") == (model == HOST_MODEL)
    return True


@dataclass(frozen=True, slots=True)
class Figure:
    title: str
    workload: str
    more_is_better: bool = False
    digits: int = 0


FIGURES = {
    "decode_ms": Figure("decode, ms/token", "latency", digits=1),
    "ttft_ms": Figure("TTFT 128, ms", "latency"),
    "prefill_tokens_per_s": Figure("prefill 2048, tok/s", "prefill", True),
    "output_tokens_per_s": Figure("32 × (256 → 64), tok/s", "throughput", True, 1),
    "prefix_cold_s": Figure("prefix cold, s", "prefix", digits=2),
    "prefix_warm_s": Figure("prefix warm, s", "prefix", digits=2),
    "host_tokens_per_s": Figure("host 256 rows, tok/s", "host", True),
    "host_step_us": Figure("host 256 rows, µs/step", "host"),
    "host_one_step_us": Figure("host 1 row, µs/step", "host"),
    "serve_tokens_per_s": Figure("HTTP, tok/s", SERVE, True),
    "serve_requests_per_s": Figure("HTTP, req/s", SERVE, True, 2),
    "serve_ttft_p50_ms": Figure("HTTP TTFT p50, ms", SERVE),
    "serve_ttft_p99_ms": Figure("HTTP TTFT p99, ms", SERVE),
    "serve_itl_p50_ms": Figure("HTTP ITL p50, ms", SERVE, digits=1),
    "serve_itl_p99_ms": Figure("HTTP ITL p99, ms", SERVE, digits=1),
    "server_ready_s": Figure("HTTP ready, s", SERVE, digits=1),
    "server_rss_mib": Figure("HTTP RSS, MiB", SERVE),
    "startup_s": Figure("start to first token, s", "startup", digits=1),
    "peak_rss_mib": Figure("peak RSS, MiB", "memory"),
    "peak_pss_mib": Figure("PSS after loads, MiB", "memory"),
}
