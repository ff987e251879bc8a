"""`vllm bench latency|throughput|serve|startup`"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence

BENCHMARKS = {
    "latency": ("vllm.benchmarks.latency", "Time of one batch through the engine."),
    "throughput": ("vllm.benchmarks.throughput", "Tokens per second of many requests, offline."),
    "serve": ("vllm.benchmarks.serve", "Load on a running server, as its clients see it."),
    "startup": ("vllm.benchmarks.startup", "From starting a server to its first token."),
}


def add_arguments(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """The arguments of the benchmark on the command line only: those of others take imports."""
    wanted = next((word for word in words if word in BENCHMARKS), None)
    subparsers = parser.add_subparsers(dest="benchmark", metavar="BENCHMARK", required=True)
    for name, (module, text) in BENCHMARKS.items():
        subparser = subparsers.add_parser(name, help=text, description=text)
        if name == wanted:
            implementation = importlib.import_module(module)
            implementation.add_arguments(subparser)
            subparser.set_defaults(run_benchmark=implementation.run)


def run(args: argparse.Namespace) -> int:
    return int(args.run_benchmark(args) or 0)
