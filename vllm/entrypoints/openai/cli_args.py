"""The settings of the server itself; the engine's are in vllm.config."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from vllm import envs
from vllm.config.flags import add_settings
from vllm.config.kinds import INT, TEXTS
from vllm.config.option import Setting, option, settings_of
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.errors import ConfigError

LOG_LEVELS = ("critical", "error", "warning", "info", "debug", "trace")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    host: str = option("0.0.0.0", help="Address to listen on.")
    port: int = option(8000, low=0, high=65535, help="Port to listen on; 0: any free one.")
    uvicorn_log_level: str = option(
        "warning", choices=LOG_LEVELS, help="How much the HTTP server says."
    )
    disable_uvicorn_access_log: bool = option(
        False, help="No line per request at --uvicorn-log-level info."
    )
    api_key: tuple[str, ...] = option(
        (),
        kind=TEXTS,
        help="Keys of which a client must send one, as 'Authorization: Bearer KEY'. "
        "Without any, everybody may use the server. Also VLLM_API_KEY.",
    )
    allow_credentials: bool = option(False, help="CORS: let browsers send credentials.")
    allowed_origins: tuple[str, ...] = option(
        ("*",), kind=TEXTS, help="CORS: origins whose pages may use the server."
    )
    allowed_methods: tuple[str, ...] = option(("*",), kind=TEXTS, help="CORS: methods allowed.")
    allowed_headers: tuple[str, ...] = option(("*",), kind=TEXTS, help="CORS: headers allowed.")
    root_path: str = option("", help="Path under which a proxy shows this server.")
    chat_template: str = option(
        "",
        help="Chat template to use instead of the tokenizer's: a Jinja file, or the template.",
    )
    chat_template_content_format: Literal["auto", "string", "openai"] = option(
        "auto",
        choices=("auto", "string", "openai"),
        help="How the template reads a message's content: as text, or as a list of parts.",
    )
    trust_request_chat_template: bool = option(
        False, help="Run chat templates that come with a request."
    )
    response_role: str = option("assistant", help="Role of the messages the server answers with.")
    return_tokens_as_token_ids: bool = option(
        False, help="Write the tokens of log-probabilities as 'token_id:N'."
    )
    enable_force_include_usage: bool = option(
        False, help="End every stream with its usage, asked for or not."
    )
    enable_prompt_tokens_details: bool = option(
        False, help="Say in the usage how many prompt tokens came from the prefix cache."
    )
    enable_request_id_headers: bool = option(
        False, help="Answer with the X-Request-Id of the request, or a new one."
    )
    enable_tokenizer_info_endpoint: bool = option(
        False, help="Offer /tokenizer_info: the tokenizer's settings and chat template."
    )
    max_log_len: int = option(
        None,
        kind=INT,
        low=0,
        auto="no limit",
        help="Most characters and token ids of a prompt in the log of requests.",
    )
    disable_ui: bool = option(False, help="No page at / and no figures of the engine for it.")
    disable_fastapi_docs: bool = option(False, help="No /docs, /redoc and /openapi.json.")
    shutdown_timeout: int = option(
        5, low=0, help="Seconds that open requests have to end when the server is stopped."
    )


def server_settings() -> Iterator[Setting]:
    return settings_of(ServerOptions)


def add_server_flags(parser: argparse.ArgumentParser) -> None:
    add_settings(parser, "server", server_settings())


def make_arg_parser(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add every flag of `vllm serve`."""
    add_server_flags(parser)
    AsyncEngineArgs.add_cli_args(parser)
    return parser


def validate_parsed_serve_args(args: argparse.Namespace) -> None:
    """Raises ConfigError for what is wrong without a look at the model."""
    server_options(args)


def server_options(args: argparse.Namespace) -> ServerOptions:
    """Raises ConfigError naming flag, value and remedy."""
    values = {}
    for setting in server_settings():
        value = vars(args).get(setting.name, setting.default)
        if setting.kind.many and len(value) == 1 and value[0].startswith("["):
            value = _json_words(setting, value[0])
        values[setting.attribute] = setting.check(value)
    if not values["api_key"] and envs.VLLM_API_KEY:
        values["api_key"] = (envs.VLLM_API_KEY,)
    return ServerOptions(**values)


def _json_words(setting: Setting, text: str) -> tuple[str, ...]:
    try:
        words = json.loads(text)
    except ValueError:
        raise ConfigError(f"{setting.flag} {text}: neither words nor a JSON list.") from None
    return tuple(words)
