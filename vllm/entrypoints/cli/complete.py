"""`vllm complete`"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vllm.config.flags import add_settings, from_flags
from vllm.config.option import option, settings_of
from vllm.entrypoints.cli.client import Client, ClientOptions, NoAnswer


@dataclass(frozen=True, slots=True, kw_only=True)
class CompleteOptions(ClientOptions):
    # Without a bound a model that was never taught to end would fill its context.
    max_tokens: int = option(128, low=1, help="Most tokens of an answer.")


def add_arguments(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    add_settings(parser, "complete", settings_of(CompleteOptions))


def run(args: argparse.Namespace) -> None:
    options = from_flags(CompleteOptions, args)
    client = Client(options)
    for text in options.texts():
        try:
            client.answer("/completions", {"prompt": text}, _text)
        except NoAnswer as error:
            if not options.is_conversation:
                raise
            print(error)


def _text(choice: Any) -> str:
    return str(choice.get("text") or "")
