"""What an executor and a rank in another process say to each other: one reply per request."""

from __future__ import annotations

import builtins
import traceback
from typing import Any

import msgspec

import vllm.errors
from vllm.messages.cache import KVCacheLayout
from vllm.messages.facts import WorkerFacts
from vllm.messages.step import StepPlan, StepResult


class Load(msgspec.Struct, frozen=True, tag=True):
    """The first request, after all ranks have joined with the same settings."""


class RunStep(msgspec.Struct, frozen=True, tag=True):
    plan: StepPlan


class BindKVCache(msgspec.Struct, frozen=True, tag=True):
    layout: KVCacheLayout


class Invoke(msgspec.Struct, frozen=True, tag=True):
    method: Any  # a Method
    args: list[Any]


ToRank = Load | RunStep | BindKVCache | Invoke


class Joined(msgspec.Struct, frozen=True, tag=True):
    """The first message of a rank: the settings with which it runs."""

    sections: dict[str, str]  # of the configuration: digests
    versions: dict[str, str]
    variables: dict[str, str]


class Loaded(msgspec.Struct, frozen=True, tag=True):
    facts: WorkerFacts


class StepDone(msgspec.Struct, frozen=True, tag=True):
    """A step has ended, or on ranks other than the driver begun without an error."""

    result: StepResult | None  # the driver's alone: the others have computed the same values


class Returned(msgspec.Struct, frozen=True, tag=True):
    value: Any


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The request could not be served; the rank goes on."""

    module: str
    name: str
    message: str
    traceback: str

    @property
    def may_follow(self) -> bool:
        """Whether it is an error as torch raises it when another rank has left a collective."""
        is_plain = (self.module, self.name) == ("builtins", "RuntimeError")
        return is_plain or self.module.startswith("torch.")


FromRank = Joined | Loaded | StepDone | Returned | Failed


class RankError(RuntimeError):
    """An error of a rank whose type this process cannot make again."""


class RankTraceback(Exception):
    """Where in the rank an error came from; the cause of the error raised here."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def failure(error: BaseException) -> Failed:
    """`error` in a form that travels."""
    kind = type(error)
    text = "".join(traceback.format_exception(error))
    return Failed(kind.__module__, kind.__qualname__, str(error), text)


def revive(failed: Failed, rank: int, is_alone: bool = True) -> Exception:
    """The error again, of its type if that is ours or built in, with the rank's traceback.

    One of several ranks (not `is_alone`) is named.
    """
    namespace = {"vllm.errors": vars(vllm.errors), "builtins": vars(builtins)}
    kind = namespace.get(failed.module, {}).get(failed.name)
    error: Exception
    if isinstance(kind, type) and issubclass(kind, Exception):
        try:
            error = kind(failed.message if is_alone else f"rank {rank}: {failed.message}")
        except TypeError:  # a type that needs more than a message, as UnicodeDecodeError does
            error = RankError(f"rank {rank}: {failed.name}: {failed.message}")
    else:
        error = RankError(f"rank {rank}: {failed.module}.{failed.name}: {failed.message}")
    error.__cause__ = RankTraceback(failed.traceback)
    return error
