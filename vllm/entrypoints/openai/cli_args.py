"""Flags of the server, and the settings that they make."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from vllm import envs
from vllm.config import legacy, unavailable
from vllm.config.flags import add_settings
from vllm.config.option import Setting
from vllm.config.vllm import all_settings
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.openai.server_options import ServerOptions, server_settings
from vllm.errors import ConfigError


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
    # A start that only looks for its flags does without these.
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
