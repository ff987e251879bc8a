"""--middleware: code of the operator around every request."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vllm.errors import ConfigError

if TYPE_CHECKING:
    from fastapi import FastAPI


def add_users_middleware(app: FastAPI, paths: Sequence[str]) -> None:
    """Raises ConfigError naming the path that is no middleware."""
    for path in paths:
        found = imported(path)
        if inspect.isclass(found):
            app.add_middleware(found)
        elif inspect.iscoroutinefunction(found):
            app.middleware("http")(found)
        else:
            raise ConfigError(
                f"--middleware {path}: is a {type(found).__name__}. Name an ASGI middleware class, "
                "or an async function (request, call_next)."
            )


def imported(path: str) -> object:
    module, _, name = path.replace(":", ".").rpartition(".")
    try:
        return vars(importlib.import_module(module))[name]
    except KeyError:
        raise ConfigError(f"--middleware {path}: module {module} has no {name}.") from None
    except Exception as error:  # whatever the operator's module raises
        raise ConfigError(
            f"--middleware {path}: cannot be imported: {type(error).__name__}: {error}. Give "
            "module.name, with the module on PYTHONPATH."
        ) from None
