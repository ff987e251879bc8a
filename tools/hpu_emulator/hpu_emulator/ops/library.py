"""Declaring kernels of the device: one op each, computed in torch on the host's view of memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

F = TypeVar("F", bound=Callable[..., Any])

_LIBRARY = torch.library.Library("hpu", "FRAGMENT")


def kernel(schema: str, meta: Callable[..., Any] | None = None) -> Callable[[F], F]:
    """Declares `hpu::` + `schema` with the function as its implementation.

    The device's fallback calls it with tensors of the host, as one op. Shapes are inferred by
    `meta`, or by the function itself where nothing in it depends on values.
    """
    name = schema.partition("(")[0]

    def register(function: F) -> F:
        _LIBRARY.define(schema)
        _LIBRARY.impl(name, function, "CPU")
        _LIBRARY.impl(name, meta or function, "Meta")
        return function

    return register


class CompileFailed(RuntimeError):
    """What the graph compiler says of a graph that it cannot compile."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"Graph compile failed. synStatus=synStatus 26 [Generic failure]. {reason}"
        )
