"""What `make bench` runs: latency, throughput and a server under load, on the shipped model.

python benchmarks/quick.py [--model DIR] [--output-json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from vllm.benchmarks import latency, report, serve, throughput  # noqa: E402
from vllm.benchmarks.http_client import Server, ServerError  # noqa: E402

STORY = ROOT / "examples" / "models" / "tiny-story"
START_LIMIT_S = 60.0
RUN_LIMIT_S = 180.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=str(STORY), help="Model to measure.")
    parser.add_argument("--output-json", default="", help="Write all figures to this file.")
    args = parser.parse_args()
    results: dict[str, Any] = {"model": args.model, "machine": platform.platform()}
    results["latency"] = offline("latency", args.model, num_iters=8, num_iters_warmup=2)
    print(report.table("Latency, one batch", latency.rows(results["latency"])), "\n")
    results["throughput"] = offline(
        "throughput", args.model, num_prompts=128, input_len=128, output_len=128
    )
    print(report.table("Throughput, offline", throughput.rows(results["throughput"])), "\n")
    with serving(args.model) as (url, start_s):
        results["start_s"] = start_s
        results["serve"] = serve.bench(load_on(url)).result
    print(f"Server, ready after {start_s:.1f} s")
    print(report.serving_summary(results["serve"]))
    if args.output_json:
        report.save(args.output_json, results)


def offline(benchmark: str, model: str, **values: int) -> dict[str, Any]:
    """Run a benchmark in a process of its own, so that none meets the memory of another."""
    flags = [word for name, value in values.items() for word in (flag_of(name), str(value))]
    with tempfile.NamedTemporaryFile(suffix=".json") as figures:
        command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "bench", benchmark]
        command += ["--model", model, "--output-json", figures.name, "--disable-tqdm", *flags]
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=RUN_LIMIT_S, check=False
        )
        if done.returncode:
            sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
        return dict(json.loads(Path(figures.name).read_text()))


def flag_of(name: str) -> str:
    return "--" + name.replace("_", "-")


def load_on(url: str) -> serve.ServeOptions:
    parser = argparse.ArgumentParser()
    serve.add_arguments(parser)
    flags = ["--base-url", url, "--num-prompts", "96", "--max-concurrency", "16", "--ignore-eos"]
    flags += ["--input-len", "64", "--output-len", "64", "--disable-tqdm"]
    return serve.ServeOptions.of(parser.parse_args(flags))


@contextmanager
def serving(model: str, flags: Sequence[str] = ()) -> Iterator[tuple[str, float]]:
    """A server on a free port of this machine, stopped at the end: its URL and seconds to start."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", model, *flags]
    start_s = time.monotonic()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)], cwd=ROOT, stdout=log, stderr=log
        )
        try:
            url = f"http://127.0.0.1:{port}"
            wait_until_healthy(url, process, log)
            yield url, time.monotonic() - start_s
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_until_healthy(url: str, process: subprocess.Popen[bytes], log: Any) -> None:
    deadline_s = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline_s and process.poll() is None:
        try:
            asyncio.run(Server.at(url).get("/version"))
            return
        except (OSError, EOFError, ServerError):
            time.sleep(0.1)
    log.seek(0)
    sys.exit(f"the server did not start:\n{log.read().decode(errors='replace')}")


if __name__ == "__main__":
    main()
