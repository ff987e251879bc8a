"""What `vllm chat` and `vllm complete` share: a server to talk to, and answers as they come."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from vllm import envs
from vllm.config.kinds import FLOAT, INT
from vllm.config.option import option
from vllm.errors import ConfigError
from vllm.utils.http_client import Server, ServerError

DIM, PLAIN = "\033[2m", "\033[0m"
STDIN = "-"
# Of statuses, as ServerError tells them.
HINTS = {
    "status 401": "Give the server's key with --api-key.",
    "status 404": "The URL of a server ends in /v1.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientOptions:
    url: str = option("http://127.0.0.1:8000/v1", help="The server's API.")
    model_name: str = option("", auto="the first served", help="Model to ask.")
    api_key: str = option(
        "", secret=True, help="Key to send. Also VLLM_API_KEY, then OPENAI_API_KEY."
    )
    max_tokens: int | None = option(
        None, kind=INT, low=1, auto="the server's", help="Most tokens of an answer."
    )
    temperature: float | None = option(
        None, kind=FLOAT, low=0, auto="the server's", help="0: the likeliest answer."
    )
    quick: str = option(
        "",
        aliases=("-q",),
        auto="a conversation",
        help="Send this text (-: all of standard input), print the answer, exit.",
    )

    def fields(self) -> dict[str, Any]:
        """What these add to a request's body."""
        given = {"max_tokens": self.max_tokens, "temperature": self.temperature}
        return {name: value for name, value in given.items() if value is not None}

    def texts(self) -> Iterator[str]:
        """What to send: the text of --quick, or what the user types."""
        if self.quick:
            return iter([sys.stdin.read() if self.quick == STDIN else self.quick])
        return lines()

    @property
    def is_conversation(self) -> bool:
        """Someone is there, who can go on after a failure."""
        return not self.quick and sys.stdin.isatty()


class NoAnswer(ConfigError):
    """The server refused a request, or stopped in the middle."""


class Client:
    """Raises ConfigError when the server cannot be used."""

    def __init__(self, options: ClientOptions) -> None:
        key = options.api_key or envs.VLLM_API_KEY or envs.inherited("OPENAI_API_KEY") or ""
        try:
            self.server = Server.at(options.url, key)
        except ValueError as error:
            raise ConfigError(f"--url: {error}") from None
        self.model = options.model_name or self._first_model(options.url)
        self.fields = {"model": self.model, **options.fields()}

    def answer(self, path: str, body: dict[str, Any], text_of: Callable[[Any], str]) -> str:
        """Print the answer as it comes; returns it. Ctrl-C ends the answer, not the program.

        Raises NoAnswer.
        """
        said: list[str] = []

        async def stream() -> None:
            async for event in self.server.stream(path, {**self.fields, **body, "stream": True}):
                for choice in event.get("choices") or ():
                    text = text_of(choice)
                    said.append(text)
                    print(text, end="", flush=True)

        try:
            asyncio.run(stream())
        except KeyboardInterrupt:
            print(f" {DIM}[stopped]{PLAIN}" if sys.stdout.isatty() else "", end="")
        except (OSError, EOFError, ValueError, ServerError) as error:
            if said:
                print()
            raise NoAnswer(f"no answer: {error}") from error
        print()
        return "".join(said)

    def _first_model(self, url: str) -> str:
        try:
            return str(asyncio.run(self.server.get("/models"))["data"][0]["id"])
        except OSError as error:
            raise ConfigError(
                f"no server answers at {url} ({error}). Start one with `vllm serve MODEL`, or say "
                "where it is with --url."
            ) from error
        except ServerError as error:
            hint = next((text for status, text in HINTS.items() if status in str(error)), "")
            raise ConfigError(f"--url {url}: {error}. {hint}".rstrip()) from error
        except (EOFError, ValueError, LookupError, TypeError) as error:
            raise ConfigError(
                f"--url {url}: GET /models brings no list of models ({error!r}). "
                + HINTS["status 404"]
            ) from error


def lines() -> Iterator[str]:
    """What the user types or pipes in, until the end of it; Ctrl-C discards a line."""
    prompt = ""
    if sys.stdin.isatty():
        import readline  # noqa: F401  (its import makes input() remember and edit lines)

        prompt = "> "
    while True:
        try:
            text = input(prompt)
        except EOFError:
            if prompt:
                print()
            return
        except KeyboardInterrupt:
            if not prompt:
                raise
            print(f"\n{DIM}Ctrl-D or /exit ends.{PLAIN}")
            continue
        if text.strip():
            yield text
