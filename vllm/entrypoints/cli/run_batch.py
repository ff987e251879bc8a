"""`vllm run-batch -i IN -o OUT --model MODEL`"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from vllm.entrypoints.openai.batch.options import add_batch_flags


def add_arguments(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    add_batch_flags(parser)


def run(args: argparse.Namespace) -> None:
    # The server's imports take a second, which a wrong flag need not cost.
    from vllm.entrypoints.openai.run_batch import run_batch

    run_batch(args)
