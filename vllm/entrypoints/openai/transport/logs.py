"""The access log, and --log-config-file."""

from __future__ import annotations

import copy
import json
import logging
import logging.config
from typing import Any

from uvicorn.config import LOGGING_CONFIG

from vllm.entrypoints.openai.transport.options import TransportOptions
from vllm.errors import ConfigError


class PathFilter(logging.Filter):
    """Drops lines of the access log that are about one of `paths`."""

    def __init__(self, paths: list[str]) -> None:
        super().__init__()
        self.paths = frozenset(paths)

    def filter(self, record: logging.LogRecord) -> bool:
        # Client, method, path with query, HTTP version, status: in this order.
        args = record.args
        if not isinstance(args, tuple) or len(args) < 3:
            return True
        return str(args[2]).partition("?")[0] not in self.paths


class QueryFilter(logging.Filter):
    """Leaves queries out of the access log: what clients put there may be secret."""

    def filter(self, record: logging.LogRecord) -> bool:
        args = record.args
        if isinstance(args, tuple) and len(args) >= 3:
            record.args = (*args[:2], str(args[2]).partition("?")[0], *args[3:])
        return True


def without_queries() -> None:
    """Whatever the handlers are, those of --log-config-file included."""
    access = logging.getLogger("uvicorn.access")
    if not any(isinstance(kept, QueryFilter) for kept in access.filters):
        access.addFilter(QueryFilter())


def access_log_config(options: TransportOptions) -> dict[str, Any]:
    """For the HTTP server. The operator's file has the last word, and is applied before."""
    if options.log_config_file:
        return {"version": 1, "incremental": True}
    config = copy.deepcopy(LOGGING_CONFIG)
    paths = [p.strip() for p in options.disable_access_log_for_endpoints.split(",") if p.strip()]
    if paths:
        config["filters"] = {"paths": {"()": PathFilter, "paths": paths}}
        config["handlers"]["access"]["filters"] = ["paths"]
    return config


def configure_logs(options: TransportOptions) -> None:
    """Apply --log-config-file in this process. Raises ConfigError naming what is wrong with it."""
    path = options.log_config_file
    if not path:
        return
    if options.disable_access_log_for_endpoints:
        raise ConfigError(
            "--disable-access-log-for-endpoints: does not go with --log-config-file, which says "
            "all about logs; filter there."
        )
    try:
        with open(path, encoding="utf-8") as file:
            config = json.load(file)
    except OSError as error:
        raise ConfigError(f"--log-config-file {path}: {error.strerror or error}.") from None
    except ValueError as error:
        raise ConfigError(f"--log-config-file {path}: is not JSON: {error}.") from None
    try:
        logging.config.dictConfig(config)
    except Exception as error:  # whatever a class named in it raises
        raise ConfigError(
            f"--log-config-file {path}: logging.config.dictConfig refuses it: {error}. Its version "
            "must be 1."
        ) from None
