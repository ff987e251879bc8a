"""`vllm collect-env`"""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
import sys
from collections.abc import Sequence

PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "numpy",
    "msgspec",
    "pyzmq",
    "fastapi",
    "starlette",
    "uvicorn",
    "uvloop",
    "httptools",
    "pydantic",
    "prometheus-client",
    "habana-torch-plugin",
)


def add_arguments(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """It takes none."""


def run(args: argparse.Namespace) -> None:
    import torch

    from vllm.version import __version__

    rows = {
        "vllm": __version__,
        "python": sys.version.split()[0],
        "system": platform.platform(),
        "cpu": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "cpu capability": torch.backends.cpu.get_cpu_capability(),
    }
    for package in PACKAGES:
        try:
            rows[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            rows[package] = "-"
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"{name:<{width}}  {value}")
