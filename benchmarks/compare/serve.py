"""The engine behind its HTTP server: streams of completions over the loopback."""

from __future__ import annotations

import asyncio
import http.client
import socket
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.compare.client import Stream, load, request_of
from benchmarks.compare.engines import Engine, Limits
from benchmarks.compare.memory import Watch
from benchmarks.compare.models import ModelShape
from benchmarks.compare.session import EngineProblem, started, tail
from benchmarks.compare.workloads import HOST_MODEL, SERVE, Figures, Prompts

POLL_S = 0.1
OUTPUT_LEN = 64


@dataclass(frozen=True, slots=True)
class Load:
    num_requests: int
    concurrency: int
    input_len: int


HOST_LOAD = Load(num_requests=256, concurrency=64, input_len=16)
LOAD = Load(num_requests=16, concurrency=8, input_len=128)


def measure(
    engine: Engine, shape: ModelShape, checkpoint: Path, limits: Limits, log: Path, limit_s: float
) -> Figures:
    """Start the server, load it, stop it. Raises EngineProblem."""
    if engine.kind.server is None:
        raise EngineProblem("has no server here")
    port = free_port()
    command = engine.kind.server(engine.home, engine.model_path(checkpoint), port, limits)
    load_plan = HOST_LOAD if shape.name == HOST_MODEL else LOAD
    prompts = Prompts.of(shape, SERVE, 0)
    start_s = time.perf_counter()
    with started(command, engine, limits, log) as process, Watch(process.pid) as watch:
        deadline_s = start_s + limit_s
        while not is_healthy(port):
            if process.poll() is not None or time.perf_counter() > deadline_s:
                raise EngineProblem(f"the server did not start\n{tail(log)}")
            time.sleep(POLL_S)
        ready_s = time.perf_counter() - start_s
        # Once with fewer requests, so that nothing is met for the first time.
        _run(port, load_plan, load_plan.concurrency, prompts, limit_s)
        start_s = time.perf_counter()
        streams = _run(port, load_plan, load_plan.num_requests, prompts, limit_s)
        figures = figures_of(streams, time.perf_counter() - start_s)
    return figures | {"server_ready_s": ready_s, "server_rss_mib": watch.peak_rss_mib}


def _run(
    port: int, plan: Load, num_requests: int, prompts: Prompts, limit_s: float
) -> list[Stream]:
    requests = [
        request_of(prompt, OUTPUT_LEN, "model")
        for prompt in prompts.many(num_requests, plan.input_len)
    ]
    try:
        work = load(port, requests, plan.concurrency)
        streams = asyncio.run(asyncio.wait_for(work, limit_s))
    except (OSError, asyncio.TimeoutError) as error:
        raise EngineProblem(f"the server does not answer: {error!r}") from None
    if problems := {stream.problem for stream in streams if stream.problem}:
        raise EngineProblem(f"streams failed: {sorted(problems)[:3]}")
    # A server that says nothing of the number of tokens has it from `max_tokens`.
    if wrong := {stream.num_tokens for stream in streams} - {0, OUTPUT_LEN}:
        raise EngineProblem(f"asked for {OUTPUT_LEN} tokens per stream, got {sorted(wrong)}")
    return streams


def figures_of(streams: Sequence[Stream], seconds: float) -> Figures:
    firsts = [stream.first_s for stream in streams]
    gaps = [gap for stream in streams for gap in stream.gaps_s]
    return {
        "serve_tokens_per_s": len(streams) * OUTPUT_LEN / seconds,
        "serve_requests_per_s": len(streams) / seconds,
        "serve_ttft_p50_ms": 1e3 * statistics.median(firsts),
        "serve_ttft_p99_ms": 1e3 * percentile(firsts, 0.99),
        "serve_itl_p50_ms": 1e3 * statistics.median(gaps),
        "serve_itl_p99_ms": 1e3 * percentile(gaps, 0.99),
    }


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of them does not exceed."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(share * len(ranked)))]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_healthy(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
