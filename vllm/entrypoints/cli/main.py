"""The `vllm` command. A subcommand's module is imported only when it is asked for.

At the top is what handles signals, and nothing else: the rest is imported once they are handled.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

from vllm.entrypoints.stop_signals import stop_signals
from vllm.version import __version__

if TYPE_CHECKING:
    import argparse

# name: (module with add_arguments(parser, words) and run(args), what it does)
COMMANDS = {
    "serve": ("vllm.entrypoints.cli.serve", "Serve a model over HTTP, in the OpenAI API."),
    "chat": ("vllm.entrypoints.cli.chat", "Talk to a running server."),
    "complete": ("vllm.entrypoints.cli.complete", "Let a running server continue text."),
    "bench": ("vllm.entrypoints.cli.bench", "Measure latency, throughput, a server or its start."),
    "run-batch": ("vllm.entrypoints.cli.run_batch", "Answer an OpenAI batch file, offline."),
    "collect-env": ("vllm.entrypoints.cli.collect_env", "Show what a report of a bug should say."),
}
ENGINE_FAILED = 1
USER_ERROR = 2
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code. A user's mistake is one message and code 2.

    Without `argv` it is the program's own, and the program does nothing but this.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    command = next((word for word in words if not word.startswith("-")), None)
    is_server = command == "serve"
    try:
        with stop_signals.watched(restore=argv is not None) if is_server else nullcontext():
            if argv is None:
                _forgive_output(is_server)
            return _run(command, words)
    except (BrokenPipeError, KeyboardInterrupt):
        return INTERRUPTED
    except Exception as error:
        if argv is not None:
            raise
        return _tell_of_mistake(error)


def _tell_of_mistake(error: Exception) -> int:
    """As Python does of an exception that nobody caught, but wherever it can be written."""
    import traceback

    from vllm.utils.output import last_words

    last_words("".join(traceback.format_exception(error)).rstrip())
    return ENGINE_FAILED


def _forgive_output(is_server: bool) -> None:
    """What a command answers has to arrive; what a server says of itself need not."""
    from vllm.utils.output import STDERR, STDOUT, forgive

    forgive(*((STDOUT, STDERR) if is_server else (STDERR,)))


def _run(command: str | None, words: Sequence[str]) -> int:
    from vllm.errors import BadRequest, ConfigError, EngineDeadError, LoadError
    from vllm.utils.output import last_words

    parser = build_parser(command if command in COMMANDS else None, words)
    if not words:
        parser.print_help()
        return 0
    args = parser.parse_args(words)
    try:
        return int(args.run(args) or 0)
    except (ConfigError, LoadError, BadRequest) as error:
        last_words(f"vllm {command}: {error}")
        return USER_ERROR
    except EngineDeadError as error:
        # The engine's process has logged its own traceback; ours would only show who waited.
        last_words(f"vllm {command}: {error}")
        return ENGINE_FAILED


def build_parser(command: str | None, words: Sequence[str]) -> argparse.ArgumentParser:
    """The parser, with the arguments of `command` only: those of others take imports."""
    import importlib

    from vllm.utils.argparse import FlexibleArgumentParser

    parser = FlexibleArgumentParser(prog="vllm", description="Serve and run language models.")
    parser.add_argument("-v", "--version", action="version", version=__version__)
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (module, text) in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=text, description=text)
        if name == command:
            implementation = importlib.import_module(module)
            implementation.add_arguments(subparser, words)
            subparser.set_defaults(run=implementation.run)
    return parser


if __name__ == "__main__":
    sys.exit(main())
