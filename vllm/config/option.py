"""The one declaration of a setting; flags, EngineArgs and the documentation are made from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from vllm.config.kinds import Kind, kind_of
from vllm.errors import ConfigError
from vllm.utils.text import did_you_mean

_KEY = "vllm.option"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What a user may set: one field of a config, under the name the command line knows."""

    name: str  # keyword of EngineArgs
    flag: str
    group: str  # config class that holds it
    attribute: str  # field of that class
    default: Any
    kind: Kind
    help: str
    choices: tuple[Any, ...]
    low: float | None
    high: float | None
    aliases: tuple[str, ...]
    auto: str  # who decides when the user does not; "": the default is a value like any other
    secret: bool  # never shown
    folded: bool  # acts through other fields, and is kept only to show what was asked for
    local: bool  # may differ between the nodes of one engine

    def check(self, value: Any) -> Any:
        """`value` in the setting's type; None is as if nothing was said.

        Raises ConfigError naming flag, value and what is allowed.
        """
        if value is None:
            return self.default
        if self.auto and value == self.default:
            return value
        try:
            value = self.kind.take(value)
        except (TypeError, ValueError):
            raise ConfigError(f"{self.flag} {value!r}: must be {self.kind.name}.") from None
        if self.choices and value not in self.choices:
            allowed = ", ".join(str(choice) for choice in self.choices)
            raise ConfigError(
                f"{self.flag} {value!r}: not one of {allowed}.{did_you_mean(value, self.choices)}"
            )
        if self.low is not None and value < self.low:
            raise ConfigError(f"{self.flag} {value}: must be at least {self.low:g}.")
        if self.high is not None and value > self.high:
            raise ConfigError(f"{self.flag} {value}: must be at most {self.high:g}.")
        return value


def option(
    default: Any,
    *,
    help: str,
    kind: Kind | None = None,
    choices: Iterable[Any] = (),
    low: float | None = None,
    high: float | None = None,
    flag: str = "",
    aliases: tuple[str, ...] = (),
    auto: str = "",
    secret: bool = False,
    folded: bool = False,
    local: bool = False,
) -> Any:
    """A config field that users set.

    With `auto`, `default` stands for "decide for me" and never reaches the config: the field has no
    default, and whoever builds the config must have decided. `flag` if it differs from the name.
    """
    known: dict[str, Any] = {
        "default": default,
        "kind": kind or kind_of(default),
        "help": help,
        "choices": tuple(choices),
        "low": low,
        "high": high,
        "flag": flag,
        "aliases": aliases,
        "auto": auto,
        "secret": secret,
        "folded": folded,
        "local": local,
    }
    metadata = {_KEY: known}
    if auto:
        return field(metadata=metadata, repr=not secret)
    if isinstance(default, dict):
        return field(default_factory=dict, metadata=metadata)
    return field(default=default, metadata=metadata, repr=not secret)


def is_local(item: dataclasses.Field[Any]) -> bool:
    """Whether a field of a config is a setting that may differ between the nodes of one engine."""
    return bool(item.metadata.get(_KEY, {}).get("local"))


def settings_of(group: type) -> Iterator[Setting]:
    """The settings a config class declares; its other fields are facts found by `resolve`."""
    for item in dataclasses.fields(group):
        known = item.metadata.get(_KEY)
        if known is None:
            continue
        flag = known["flag"] or "--" + item.name.replace("_", "-")
        yield Setting(
            name=flag[2:].replace("-", "_"),
            group=group.__name__,
            attribute=item.name,
            **{**known, "flag": flag},
        )
