"""What `vllm chat` and `vllm complete` share: a server to talk to, and answers as they come."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Callable
from typing import Any

from vllm import envs
from vllm.benchmarks.http_client import Server, ServerError
from vllm.errors import ConfigError


def add_client_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1", help="The server's API.")
    parser.add_argument(
        "--model-name", default="", help="Model to ask (default: the first served)."
    )
    parser.add_argument("--api-key", default="", help="Key to send (default: VLLM_API_KEY).")
    parser.add_argument("--max-tokens", type=int, default=None, help="Most tokens of an answer.")
    parser.add_argument("--temperature", type=float, default=None, help="0: the likeliest answer.")
    parser.add_argument("-q", "--quick", metavar="TEXT", default="", help="Send TEXT, print, exit.")


class Client:
    """Raises ConfigError when the server cannot be used."""

    def __init__(self, args: argparse.Namespace) -> None:
        try:
            self.server = Server.at(args.url, args.api_key or envs.VLLM_API_KEY)
        except ValueError as error:
            raise ConfigError(f"--url: {error}") from None
        self.settings: dict[str, Any] = {"model": args.model_name or self._first_model()}
        for name in ("max_tokens", "temperature"):
            if vars(args)[name] is not None:
                self.settings[name] = vars(args)[name]

    def answer(self, path: str, body: dict[str, Any], text_of: Callable[[Any], str]) -> str:
        """Print the answer as it comes; returns it. Ctrl-C ends the answer, not the program."""
        said: list[str] = []

        async def stream() -> None:
            async for event in self.server.stream(path, {**self.settings, **body, "stream": True}):
                for choice in event["choices"]:
                    said.append(text_of(choice))
                    print(said[-1], end="", flush=True)

        try:
            asyncio.run(stream())
        except KeyboardInterrupt:
            pass
        except (OSError, EOFError, ServerError) as error:
            raise ConfigError(f"no answer: {error}") from error
        print()
        return "".join(said)

    def _first_model(self) -> str:
        try:
            models = asyncio.run(self.server.get("/models"))
        except (OSError, EOFError, ServerError) as error:
            raise ConfigError(f"the server cannot be used: {error}") from error
        return str(models["data"][0]["id"])


def lines(prompt: str) -> Any:
    """What the user types, until Ctrl-D or Ctrl-C."""
    if sys.stdin.isatty():
        print("Ctrl-D ends, Ctrl-C stops an answer.", file=sys.stderr)
    while True:
        try:
            text = input(prompt if sys.stdin.isatty() else "")
        except (EOFError, KeyboardInterrupt):
            return
        if text.strip():
            yield text
