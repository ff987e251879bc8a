"""The settings of the server itself; the engine's are in vllm.config."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from vllm import envs
from vllm.config import legacy, unavailable
from vllm.config.flags import add_settings
from vllm.config.kinds import INT, OBJECT
from vllm.config.option import Setting, option, settings_of
from vllm.config.vllm import all_settings
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.openai.transport.options import TransportOptions
from vllm.errors import ConfigError
from vllm.parsers.reasoning.base import REASONING_PARSERS
from vllm.parsers.tools.base import TOOL_PARSERS


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions(TransportOptions):
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
    default_chat_template_kwargs: dict[str, Any] = option(
        {},
        kind=OBJECT,
        help='Arguments of chat templates, such as {"enable_thinking": false}; those of a request '
        "win.",
    )
    enable_auto_tool_choice: bool = option(
        False, help="Let models call the functions a request offers, as --tool-call-parser reads."
    )
    tool_call_parser: str = option(
        "",
        help="Notation in which the model writes calls of functions: "
        f"{', '.join(TOOL_PARSERS.names())}, or one of a plug-in.",
    )
    tool_parser_plugin: str = option(
        "", help="Python file that registers parsers for --tool-call-parser."
    )
    exclude_tools_when_tool_choice_none: bool = option(
        False, help="Do not show functions to the chat template if none may be called."
    )
    reasoning_parser: str = option(
        "",
        help="Notation in which the model writes its reasoning before the answer: "
        f"{', '.join(REASONING_PARSERS.names())}, or one of a plug-in.",
    )
    reasoning_parser_plugin: str = option(
        "", help="Python file that registers parsers for --reasoning-parser."
    )
    return_tokens_as_token_ids: bool = option(
        False, help="Write the tokens of log-probabilities as 'token_id:N'."
    )
    enable_force_include_usage: bool = option(
        False, help="End every stream with its usage, asked for or not."
    )
    enable_prompt_tokens_details: bool = option(
        False, help="Say in the usage how many prompt tokens came from the prefix cache."
    )
    enable_tokenizer_info_endpoint: bool = option(
        False, help="Offer /tokenizer_info: the tokenizer's settings and chat template."
    )
    max_log_len: int = option(
        None,
        kind=INT,
        low=0,
        auto="no limit",
        help="Most characters and token ids of a prompt, and characters of an output, in the log.",
    )
    enable_log_outputs: bool = option(False, help="Log every output once it has ended.")
    disable_ui: bool = option(False, help="No page at / and no figures of the engine for it.")


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
    """Raises ConfigError for what is wrong without a look at the model.

    Parsed by `make_arg_parser`; what the command line has checked is checked again, since a program
    may have set it.
    """
    check_options(server_options(args))
    engine_args = AsyncEngineArgs.from_cli_args(args).values()
    for setting in all_settings():
        setting.check(engine_args[setting.name])
    legacy.given(engine_args)
    unavailable.check_all(engine_args)


def check_options(options: ServerOptions) -> None:
    """Raises ConfigError for names of what does not exist, and for flags that need others."""
    # These import the settings.
    from vllm.entrypoints.chat_utils import load_chat_template
    from vllm.entrypoints.openai.serving.chat_parsers import ChatParsers
    from vllm.entrypoints.openai.transport.tls import tls_of
    from vllm.entrypoints.openai.transport.users_middleware import imported

    load_chat_template(options.chat_template or None)
    ChatParsers(options)
    for path in options.middleware:
        imported(path)
    tls_of(options)


def server_options(args: argparse.Namespace, has_clients: bool = True) -> ServerOptions:
    """Raises ConfigError naming flag, value and remedy. Without clients there are no keys."""
    values = {}
    for setting in server_settings():
        value = vars(args).get(setting.name, setting.default)
        if setting.kind.many and len(value) == 1 and value[0].startswith("["):
            value = _json_words(setting, value[0])
        values[setting.attribute] = setting.check(value)
    if not has_clients:
        values["api_key"] = ()
    elif values["api_key"] or vars(args).get("api_key"):
        check_keys("--api-key", values["api_key"])
    elif (key := envs.inherited("VLLM_API_KEY")) is not None:
        values["api_key"] = (key,)
        check_keys("VLLM_API_KEY", values["api_key"])
    return ServerOptions(**values)


def check_keys(name: str, keys: Sequence[str]) -> None:
    """Raises ConfigError for keys that no client can send, or that are none: one who sets them
    wants the server closed."""
    remedy = "Give the key, or leave it out for a server that everybody may use."
    if not keys:
        raise ConfigError(f"{name}: there is no key. {remedy}")
    for number, key in enumerate(keys, 1):
        # Not the key itself: it may be nearly right, and logs are read by many.
        which = f"{name}: key {number} of {len(keys)}" if len(keys) > 1 else f"{name}: the key"
        if not key.strip():
            raise ConfigError(f"{which} is {'blank' if key else 'empty'}. {remedy}")
        if not key.isascii() or not key.isprintable() or key != key.strip():
            raise ConfigError(
                f"{which} has characters that cannot be sent in a header: it must be printable "
                "ASCII, without spaces at its ends."
            )


def _json_words(setting: Setting, text: str) -> tuple[str, ...]:
    try:
        words = json.loads(text)
    except ValueError:
        raise ConfigError(f"{setting.flag} {text}: neither words nor a JSON list.") from None
    return tuple(words)
