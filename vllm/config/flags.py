"""Command-line flags made from the declarations of settings."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from typing import Any, Final, TypeVar

from vllm.config.kinds import BOOL, Kind
from vllm.config.legacy import LEGACY
from vllm.config.option import Setting, settings_of
from vllm.config.unavailable import UNAVAILABLE
from vllm.config.vllm import GROUPS
from vllm.errors import ConfigError
from vllm.utils.argparse import FlexibleArgumentParser

T = TypeVar("T")
OLD_FLAGS: Final = "old flags"
NOT_YET: Final = "not available yet"
_HELP_HINT: Final = (
    "--help=WORD shows what mentions a word, --help=GROUP one group (such as cache), --help=all "
    "also old flags and those of features to come. --config FILE reads flags from a YAML file."
)


def add_engine_flags(parser: argparse.ArgumentParser) -> None:
    """Add every flag of the engine. Defaults are those of EngineArgs, except `model`: None."""
    for title, group in GROUPS.items():
        add_settings(parser, title, settings_of(group))
    parser.set_defaults(model=None)
    old = parser.add_argument_group(OLD_FLAGS)
    for legacy in LEGACY:
        _add(old, (legacy.flag,), legacy.kind, legacy.neutral, legacy.help)
    coming = parser.add_argument_group(NOT_YET)
    for row in UNAVAILABLE:
        _add(coming, (row.flag, *row.aliases), row.kind, row.default, row.help)
    parser.epilog = parser.epilog or _HELP_HINT
    if isinstance(parser, FlexibleArgumentParser):
        parser.quiet |= {OLD_FLAGS, NOT_YET}


def add_settings(parser: argparse.ArgumentParser, title: str, settings: Iterable[Setting]) -> None:
    """Add the flags of one group; values are checked as they are parsed."""
    group = parser.add_argument_group(title)
    for setting in settings:
        names = (setting.flag, *setting.aliases)
        text = f"{setting.help} (default: {shown_default(setting)})"
        action = _add(group, names, setting.kind, setting.default, text)
        if action.type is not None:
            action.type = _checked(setting)
        if setting.choices:
            action.metavar = "{" + ",".join(map(str, setting.choices)) + "}"


def from_flags(group: type[T], args: argparse.Namespace) -> T:
    """The instance of a class of settings that a command line asks for. Raises ConfigError."""
    values = {s.attribute: s.check(vars(args).get(s.name)) for s in settings_of(group)}
    return group(**values)


def shown_default(setting: Setting) -> str:
    if setting.auto:
        return setting.auto
    if isinstance(setting.default, tuple):
        return " ".join(map(str, setting.default)) or "none"
    if isinstance(setting.default, bool):
        return str(setting.default).lower()
    return str(setting.default) if setting.default not in ("", {}) else "none"


def _add(
    group: argparse._ArgumentGroup, names: tuple[str, ...], kind: Kind, default: Any, text: str
) -> argparse.Action:
    dest = names[0][2:].replace("-", "_")
    text = text.replace("%", "%%")
    if kind is BOOL:
        switch = argparse.BooleanOptionalAction
        return group.add_argument(*names, action=switch, dest=dest, default=default, help=text)
    return group.add_argument(
        *names,
        type=_parser_of(kind),
        nargs="+" if kind.many else None,
        metavar=kind.metavar,
        dest=dest,
        default=default,
        help=text,
    )


def _checked(setting: Setting) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        if setting.kind.many:
            return text  # one word of several: checked when all are there
        if setting.auto and text == setting.default:
            return text
        try:
            value = setting.kind.parse(text)
        except ValueError:
            value = text  # the check says what it must be
        try:
            return setting.check(value)
        except ConfigError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse


def _parser_of(kind: Kind) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        try:
            return kind.parse(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r}: must be {kind.name}.") from None

    return parse
