"""Output that follows a schema or grammar: what compiles it, and how it is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vllm.config.option import option, settings_of
from vllm.errors import ConfigError
from vllm.structured_params import BACKENDS
from vllm.utils.text import did_you_mean


@dataclass(frozen=True, slots=True, kw_only=True)
class StructuredOutputsConfig:
    backend: str = option(
        "auto",
        choices=BACKENDS,
        flag="--guided-decoding-backend",
        help="Library that compiles schemas and grammars. auto: xgrammar, and guidance for what "
        "xgrammar cannot do.",
    )
    disable_fallback: bool = option(
        False,
        flag="--guided-decoding-disable-fallback",
        help="auto: what xgrammar cannot do is refused. A backend that is named is never left, but "
        "for a grammar in Lark's notation.",
    )
    disable_any_whitespace: bool = option(
        False,
        flag="--guided-decoding-disable-any-whitespace",
        help="JSON without whitespace between its parts but single spaces.",
    )
    disable_additional_properties: bool = option(
        False,
        flag="--guided-decoding-disable-additional-properties",
        help="Objects have no members but those their schema names, unless it says otherwise.",
    )


def settings_in(value: dict[str, Any]) -> dict[str, Any]:
    """What --structured-outputs-config sets, by setting. Raises ConfigError."""
    flag = "--structured-outputs-config"
    known = {setting.attribute: setting for setting in settings_of(StructuredOutputsConfig)}
    found = {}
    for key, item in value.items():
        if key == "reasoning_parser":
            raise ConfigError(f"{flag}.{key} {item}: use --reasoning-parser {item} instead.")
        if key == "enable_in_reasoning" and item in (False, None):
            continue
        if key not in known:
            hint = did_you_mean(key, known)
            raise ConfigError(f"{flag}.{key}: there is no such setting here.{hint}")
        found[known[key].name] = known[key].check(item)
    return found
