"""`vllm complete`"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from vllm.entrypoints.cli.client import Client, add_client_flags, lines

DEFAULT_MAX_TOKENS = 128


def add_arguments(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    add_client_flags(parser)
    parser.set_defaults(max_tokens=DEFAULT_MAX_TOKENS)


def run(args: argparse.Namespace) -> None:
    client = Client(args)
    for text in [args.quick] if args.quick else lines("> "):
        client.answer("/completions", {"prompt": text}, _text)


def _text(choice: Any) -> str:
    return str(choice["text"])
