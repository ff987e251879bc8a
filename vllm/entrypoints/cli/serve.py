"""`vllm serve MODEL`"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.engine.early_core import start_early
from vllm.entrypoints.openai.cli_args import add_server_flags
from vllm.errors import ConfigError
from vllm.utils.lasting_imports import lasting_imports
from vllm.utils.open_files import need_open_files


def add_arguments(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    parser.usage = "%(prog)s MODEL [flags]"
    parser.add_argument("model_tag", nargs="?", metavar="MODEL", help="a directory or a hub name")
    add_server_flags(parser)
    AsyncEngineArgs.add_cli_args(parser)


def run(args: argparse.Namespace) -> None:
    if args.model_tag is not None:
        given = vars(args).get("model")
        if given is not None and given != args.model_tag:
            raise ConfigError(f"--model {given} and MODEL {args.model_tag} differ; give one.")
        args.model = args.model_tag
    need_open_files()
    if vars(args).get("headless"):
        if vars(args).get("api_server_count", 1) > 1:
            raise ConfigError(
                f"--headless --api-server-count {args.api_server_count}: this machine has no "
                "server. Leave the second out, and give it to the server elsewhere."
            )
        with lasting_imports():
            from vllm.entrypoints.headless import run_headless

        run_headless(args)
        return
    # The server's imports take a second, which a wrong flag need not cost. The core's take another:
    # its process begins with them before it is known what it is to run.
    start_early()
    with lasting_imports():
        from vllm.entrypoints.openai.launcher import run_server

    run_server(args)
