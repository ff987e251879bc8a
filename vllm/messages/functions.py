"""Functions on their way to another process, which needs leave: reading one runs what it says."""

from __future__ import annotations

import functools
import pickle
from collections.abc import Callable
from types import ModuleType
from typing import Any, Final

from vllm import envs
from vllm.errors import NotAvailable

LEAVE: Final = "VLLM_ALLOW_INSECURE_SERIALIZATION"


def may_travel() -> bool:
    return envs.VLLM_ALLOW_INSECURE_SERIALIZATION


def packed(function: Callable[..., Any]) -> bytes:
    """Raises NotAvailable for one that has no form to travel in."""
    assert may_travel(), function
    pickler = _pickler()
    try:
        return bytes(pickler.dumps(function))
    except Exception as error:  # its closure may hold anything
        how = "" if pickler is not pickle else "; with cloudpickle installed more of them can be"
        raise NotAvailable(
            f"{function!r} cannot be sent to another process: {error}{how}"
        ) from error


def unpacked(data: bytes | memoryview) -> Callable[..., Any]:
    """Raises ValueError without leave."""
    if not may_travel():
        raise ValueError(f"a message holds a function, and {LEAVE} is not set")
    function: Callable[..., Any] = pickle.loads(data)
    return function


@functools.cache
def _pickler() -> ModuleType:
    """cloudpickle, which takes functions that no module has, where it is installed."""
    try:
        import cloudpickle  # type: ignore[import-untyped, import-not-found, unused-ignore]
    except ImportError:
        return pickle
    found: ModuleType = cloudpickle
    return found
