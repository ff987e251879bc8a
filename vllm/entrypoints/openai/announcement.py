"""What is printed once clients can come."""

from __future__ import annotations

import sys

from vllm.entrypoints.openai.server_options import ServerOptions
from vllm.entrypoints.openai.transport.listener import Listener

BOLD, DIM, GREEN, PLAIN = "\033[1m", "\033[2m", "\033[32m", "\033[0m"


def announce(listener: Listener, options: ServerOptions, model_name: str) -> None:
    print(notice(listener.url, options, model_name, sys.stdout.isatty()))
    sys.stdout.flush()


def notice(url: str, options: ServerOptions, model_name: str, is_terminal: bool) -> str:
    """The line that says the server is up, and a command to copy."""
    flags = f"--unix-socket {options.uds} " if options.uds else ""
    if options.ssl_certfile:
        flags += "--insecure "
    if options.api_key:
        flags += '-H "Authorization: Bearer $VLLM_API_KEY" '
    body = f'{{"model": "{model_name}", "prompt": "Once upon a time", "max_tokens": 48}}'
    curl = f"curl {flags}{url}/v1/completions -H 'Content-Type: application/json' -d '{body}'"
    where = f"{url} at {options.uds}" if options.uds else url
    ready = f"Ready: {where} serves {model_name}"
    if not is_terminal:
        return f"{ready}\nTry: {curl}"
    return f"\n  {BOLD}{GREEN}●{PLAIN} {BOLD}{ready}{PLAIN}\n\n  {DIM}Try:{PLAIN} {curl}\n"
