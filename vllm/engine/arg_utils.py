"""EngineArgs: every setting, old flag and flag of a feature to come, generated from the tables."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from typing_extensions import Self

from vllm.config.legacy import LEGACY
from vllm.config.unavailable import UNAVAILABLE
from vllm.config.vllm import all_settings
from vllm.errors import ConfigError
from vllm.utils.text import did_you_mean

if TYPE_CHECKING:
    from vllm.config.vllm import VllmConfig


def _defaults() -> Iterator[tuple[str, Any]]:
    for setting in all_settings():
        yield setting.name, setting.default
    for legacy in LEGACY:
        yield legacy.name, legacy.neutral
    for row in UNAVAILABLE:
        yield row.name, row.default


class _Arguments:
    """Construction and conversions; the fields come from the tables."""

    def __init__(self, model: str | None = None, **values: Any) -> None:
        known = _fields_of(type(self))
        for name in values:
            if name not in known:
                hint = did_you_mean(name, known)
                raise ConfigError(
                    f"{name}={values[name]!r}: there is no such setting.{hint} "
                    "`vllm serve --help=all` lists them."
                )
        values["model"] = model or ""
        for name, item in known.items():
            default = item.default
            if item.default_factory is not dataclasses.MISSING:
                default = item.default_factory()
            object.__setattr__(self, name, values.get(name, default))

    def __setattr__(self, name: str, value: Any) -> None:
        known = _fields_of(type(self))
        if name not in known:
            raise ConfigError(f"{name}: there is no such setting.{did_you_mean(name, known)}")
        object.__setattr__(self, name, value)

    def values(self) -> dict[str, Any]:
        """All fields by name, as given."""
        return dict(vars(self))

    @classmethod
    def add_cli_args(cls, parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
        """Add a flag per field, grouped by config."""
        from vllm.config.flags import add_engine_flags

        add_engine_flags(parser)
        return parser

    @classmethod
    def from_cli_args(cls, args: argparse.Namespace) -> Self:
        """Takes what belongs to the engine from parsed arguments and leaves the rest."""
        known = _fields_of(cls)
        return cls(**{name: value for name, value in vars(args).items() if name in known})

    def create_engine_config(self, usage_context: Any = None, headless: bool = False) -> VllmConfig:
        """Resolve. Raises ConfigError or LoadError. Nobody collects usage."""
        from vllm.engine.resolve import resolve

        values = self.values()
        values["headless"] = values["headless"] or headless
        return resolve(values)


def _fields_of(arguments: type[_Arguments]) -> dict[str, dataclasses.Field[Any]]:
    return {f.name: f for f in dataclasses.fields(arguments)}  # type: ignore[arg-type]


def _fields() -> list[tuple[str, Any, Any]]:
    secrets = {setting.name for setting in all_settings() if setting.secret}
    found: list[tuple[str, Any, Any]] = []
    for name, default in _defaults():
        if isinstance(default, dict):
            found.append((name, Any, dataclasses.field(default_factory=dict)))
        else:
            item = dataclasses.field(default=default, repr=name not in secrets)
            found.append((name, Any, item))
    return found


if TYPE_CHECKING:

    class EngineArgs(_Arguments):
        def __getattr__(self, name: str) -> Any: ...

else:
    EngineArgs = dataclasses.make_dataclass(
        "EngineArgs", _fields(), bases=(_Arguments,), init=False, namespace={"__module__": __name__}
    )
    EngineArgs.__doc__ = "What a user may say about an engine: see docs/configuration.md."


class AsyncEngineArgs(EngineArgs):
    """The same settings under the name that servers use."""

    @classmethod
    def add_cli_args(
        cls, parser: argparse.ArgumentParser, async_args_only: bool = False
    ) -> argparse.ArgumentParser:
        """Add a flag per field; with `async_args_only` none: those of servers are its own."""
        return parser if async_args_only else super().add_cli_args(parser)

    def create_engine_config(self, usage_context: Any = None, headless: bool = False) -> VllmConfig:
        """As of EngineArgs; refuses what has no engine for servers."""
        if self.distributed_executor_backend == "external_launcher":
            raise ConfigError(
                "--distributed-executor-backend external_launcher is for programs that torchrun "
                "starts and that use LLM: every process would be a server of its own. Servers "
                "start their ranks themselves: use mp, or leave it out."
            )
        return super().create_engine_config(usage_context, headless)
