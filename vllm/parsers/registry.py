"""Parsers by the name a flag gives them, ours and those of plug-ins."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from vllm.errors import ConfigError
from vllm.parsers.deltas import MessageParser
from vllm.utils.text import did_you_mean

P = TypeVar("P", bound="type[MessageParser]")


class Registry(Generic[P]):
    """A decorator that names a class, and the classes so named."""

    def __init__(self, flag: str, package: str) -> None:
        self.flag = flag
        self._package = package
        self._classes: dict[str, P] = {}

    def __call__(self, *names: str) -> Callable[[P], P]:
        def register(cls: P) -> P:
            for name in names:
                self._classes[name] = cls
            return cls

        return register

    def names(self) -> list[str]:
        importlib.import_module(self._package)  # which registers ours
        return sorted(self._classes)

    def get(self, name: str) -> P:
        """Raises ConfigError naming the flag, and what there is."""
        names = self.names()
        if name not in names:
            raise ConfigError(
                f"{self.flag} {name}: there is no such parser; there are {', '.join(names)}."
                f"{did_you_mean(name, names)}"
            )
        return self._classes[name]


def load_plugin(flag: str, path: str) -> None:
    """Run a user's module, which registers parsers of its own. Raises ConfigError."""
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"{flag} {path}: there is no such file.")
    name = f"vllm_plugin_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{flag} {path}: not a Python module.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the user's code: whatever it raises is told
        raise ConfigError(f"{flag} {path}: {type(error).__name__}: {error}") from error
