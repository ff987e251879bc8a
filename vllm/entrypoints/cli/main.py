"""The `vllm` command. A subcommand's module is imported only when it is asked for."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from vllm.errors import BadRequest, ConfigError, EngineDeadError, LoadError
from vllm.utils.argparse import FlexibleArgumentParser

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


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code. A user's mistake is one message and code 2."""
    words = list(sys.argv[1:] if argv is None else argv)
    command = next((word for word in words if not word.startswith("-")), None)
    parser = build_parser(command if command in COMMANDS else None, words)
    if not words:
        parser.print_help()
        return 0
    args = parser.parse_args(words)
    try:
        return int(args.run(args) or 0)
    except (ConfigError, LoadError, BadRequest) as error:
        print(f"vllm {command}: {error}", file=sys.stderr)
        return USER_ERROR
    except EngineDeadError as error:
        # The engine's process has logged its own traceback; ours would only show who waited.
        print(f"vllm {command}: {error}", file=sys.stderr)
        return ENGINE_FAILED
    except (BrokenPipeError, KeyboardInterrupt):
        return 130


def build_parser(command: str | None, words: Sequence[str]) -> argparse.ArgumentParser:
    """The parser, with the arguments of `command` only: those of others take imports."""
    parser = FlexibleArgumentParser(prog="vllm", description="Serve and run language models.")
    parser.add_argument("-v", "--version", action=ShowVersion)
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (module, text) in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=text, description=text)
        if name == command:
            implementation = importlib.import_module(module)
            implementation.add_arguments(subparser, words)
            subparser.set_defaults(run=implementation.run)
    return parser


class ShowVersion(argparse.Action):
    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help="show the version")

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from vllm.version import __version__

        print(__version__)
        parser.exit()


if __name__ == "__main__":
    sys.exit(main())
