"""`vllm bench startup`: from starting a server's process to its first token."""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from tqdm import tqdm

from vllm.benchmarks import report
from vllm.benchmarks.offline import add_engine_flags
from vllm.config.flags import add_settings, from_flags
from vllm.config.option import option, settings_of
from vllm.engine.arg_utils import EngineArgs
from vllm.errors import ConfigError
from vllm.transformers_utils.hub import no_model
from vllm.utils.http_client import Server, ServerError

# What a server logs at the end of each phase. A phase that it does not log counts for the next.
PHASES = {
    "processes and imports": re.compile(r"attention backend"),
    "weights": re.compile(r"\[loader\] Loaded "),
    "KV cache": re.compile(r"KV cache: \d+ blocks"),
    "warm-up": re.compile(r"Warm-up took"),
    "listening": re.compile(r"Ready: (http://\S+) "),
}
READY = "listening"
FIRST_TOKEN = "first token"
PERCENTILES = (10, 25, 50, 75, 90, 99)
STOP_LIMIT_S = 30.0
SHOWN_LOG_CHARS = 3000


@dataclass(frozen=True, slots=True, kw_only=True)
class StartupOptions:
    num_iters: int = option(3, low=1, help="Starts to measure.")
    num_iters_warmup: int = option(
        0, low=0, help="Starts before those, so that files are in the system's cache."
    )
    prompt: str = option("Once upon a time", help="Text of the request for the first token.")
    timeout: int = option(600, low=1, help="Seconds that a start may take.")
    output_json: str = option("", help="Write the figures to this file.")
    disable_tqdm: bool = option(False, help="Show no progress bar.")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_settings(parser, "load", settings_of(StartupOptions))
    add_engine_flags(parser)


def run(args: argparse.Namespace) -> None:
    options = from_flags(StartupOptions, args)
    if not args.model:
        raise no_model()
    count = options.num_iters_warmup + options.num_iters
    with engine_file(EngineArgs.from_cli_args(args)) as path:
        bar = tqdm(range(count), unit="start", disable=options.disable_tqdm)
        starts = [start_once(args.model, path, options) for _ in bar]
    result = figures(args.model, starts[options.num_iters_warmup :])
    print(report.table("Startup benchmark", rows(result)))
    if options.output_json:
        report.save(options.output_json, result)


@dataclass(slots=True)
class Start:
    """Seconds from the start of the process to the end of each phase that was seen."""

    at_s: dict[str, float] = field(default_factory=dict)

    def phases_s(self) -> dict[str, float]:
        ends = list(self.at_s.items())
        starts = [0.0, *self.at_s.values()]
        return {name: end - start for (name, end), start in zip(ends, starts, strict=False)}


@contextmanager
def engine_file(engine: EngineArgs) -> Iterator[str]:
    """The path of a file for a server's --config that holds what differs from the defaults."""
    plain = EngineArgs().values()
    given = {
        name: value
        for name, value in engine.values().items()
        if name != "model" and value != plain[name]
    }
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as file:
        file.write(json.dumps(given))  # JSON is YAML
        file.flush()
        yield file.name


def start_once(model: str, config: str, options: StartupOptions) -> Start:
    """Start a server, ask it for a token, stop it. Raises ConfigError if it does not start."""
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", model]
    command += ["--config", config, "--host", "127.0.0.1", "--port", "0"]
    start = Start()
    begin_s = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        url = _watch(process, start, begin_s, options.timeout)
        asyncio.run(_first_token(url, model, options))
        start.at_s[FIRST_TOKEN] = time.perf_counter() - begin_s
    except (OSError, EOFError, ServerError) as error:
        raise ConfigError(f"the server started, but gave no token: {error}") from error
    finally:
        _stop(process)
    return start


def figures(model: str, starts: Sequence[Start]) -> dict[str, Any]:
    totals = [start.at_s[FIRST_TOKEN] for start in starts]
    phases: dict[str, list[float]] = {}
    for start in starts:
        for name, seconds in start.phases_s().items():
            phases.setdefault(name, []).append(seconds)
    return {
        "model": model,
        "num_iters": len(starts),
        "avg_startup_time": sum(totals) / len(totals),
        "startup_times": totals,
        "startup_percentiles": report.percentiles(totals, PERCENTILES),
        "ready_times": [start.at_s[READY] for start in starts],
        "phases": phases,
    }


def rows(result: Mapping[str, Any]) -> list[report.Row]:
    named = [(name, values) for name, values in result["phases"].items()]
    named += [("ready", result["ready_times"]), ("to the first token", result["startup_times"])]
    return [
        (name, f"median {median(values):.2f}  min {min(values):.2f}  max {max(values):.2f} s")
        for name, values in named
    ]


def _watch(process: subprocess.Popen[bytes], start: Start, begin_s: float, limit_s: float) -> str:
    """Note when phases end, until the server listens; returns its URL."""
    log = b""
    for data in _output(process, begin_s + limit_s):
        log += data
        text = log.decode(errors="replace")
        for name, pattern in PHASES.items():
            if name not in start.at_s and pattern.search(text):
                start.at_s[name] = time.perf_counter() - begin_s
        if match := PHASES[READY].search(text):
            return match[1]
    text = log.decode(errors="replace")[-SHOWN_LOG_CHARS:]
    is_over = process.poll() is not None
    reason = "ended" if is_over else f"was not ready after --timeout {limit_s:g} s"
    raise ConfigError(f"the server {reason}; it said:\n{text}")


def _output(process: subprocess.Popen[bytes], deadline_s: float) -> Iterator[bytes]:
    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while (left_s := deadline_s - time.perf_counter()) > 0:
            if not selector.select(left_s):
                return
            data = process.stdout.read1(65536)  # type: ignore[attr-defined]
            if not data:
                process.wait(STOP_LIMIT_S)
                return
            yield data


async def _first_token(url: str, model: str, options: StartupOptions) -> None:
    server = Server.at(url)
    served = (await server.get("/v1/models"))["data"][0]["id"]
    body = {"model": served, "prompt": options.prompt, "max_tokens": 1, "stream": True}
    async for _ in server.stream("/v1/completions", body):
        return


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.communicate(timeout=STOP_LIMIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
