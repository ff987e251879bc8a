"""Flags of `vllm run-batch`."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from vllm.config.flags import add_settings
from vllm.config.option import option, settings_of
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.openai.server_options import server_settings
from vllm.entrypoints.openai.transport.options import TransportOptions

# What these do is of no use to answers that are never streamed, or to a page that nobody opens.
OF_SERVERS = frozenset(
    {"enable_force_include_usage", "enable_tokenizer_info_endpoint", "disable_ui"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchOptions:
    input_file: str = option(
        "", aliases=("-i",), help="Batch file (JSONL): a path, or an http(s) URL to read."
    )
    output_file: str = option(
        "", aliases=("-o",), help="Where answers go: a path, or an http(s) URL to PUT them to."
    )
    output_tmp_dir: str = option(
        "", help="Directory for the answers until they are all there to be sent to a URL."
    )
    max_concurrency: int = option(256, low=1, help="Most lines being answered at a time.")
    disable_tqdm: bool = option(False, help="Show no progress bar.")


def add_batch_flags(parser: argparse.ArgumentParser) -> None:
    add_settings(parser, "batch", settings_of(BatchOptions))
    others = OF_SERVERS | {setting.name for setting in settings_of(TransportOptions)}
    answers = [setting for setting in server_settings() if setting.name not in others]
    add_settings(parser, "answers", answers)
    AsyncEngineArgs.add_cli_args(parser)
