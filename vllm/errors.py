"""Errors a user can act on. Everything else that goes wrong is our bug and an assert."""

from __future__ import annotations


class ConfigError(ValueError):
    """A setting is wrong or contradicts another: names flag, value and remedy. Exit code 2."""


class BadRequest(ValueError):
    """A request is wrong: says what was given and what is allowed. HTTP 400, request lost alone.

    `param` is the request field to blame, where one is.
    """

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class NotAvailable(BadRequest):
    """The request needs a feature that this engine or model does not have."""


class LoadError(RuntimeError):
    """A checkpoint cannot be loaded: says which file or tensor and why."""


class EngineDeadError(RuntimeError):
    """The engine core is gone; no request can be served any more."""
