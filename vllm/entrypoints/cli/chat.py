"""`vllm chat`"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from vllm.entrypoints.cli.client import Client, add_client_flags, lines


def add_arguments(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    add_client_flags(parser)
    parser.add_argument("--system-prompt", default="", help="Instruction that opens the chat.")


def run(args: argparse.Namespace) -> None:
    client = Client(args)
    messages: list[dict[str, str]] = []
    if args.system_prompt:
        messages.append({"role": "system", "content": args.system_prompt})
    for text in [args.quick] if args.quick else lines("> "):
        messages.append({"role": "user", "content": text})
        said = client.answer("/chat/completions", {"messages": messages}, _text)
        messages.append({"role": "assistant", "content": said})


def _text(choice: Any) -> str:
    return choice["delta"].get("content") or ""
