"""The native overrides of an op, once per instruction set that this machine runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from vllm.platforms import platform_of
from vllm.platforms.cpu import native

PLATFORM = platform_of("cpu")


def isas() -> list[str]:
    return list(torch.ops.vllm.available_isas()) if native.is_available() else []


@dataclass(frozen=True, slots=True)
class Override:
    """An override that runs with its own instruction set, whatever is in use otherwise."""

    isa: str
    function: Callable[..., Any]

    def __call__(self, *args: Any) -> Any:
        native.select_isa(self.isa)
        try:
            return self.function(*args)
        finally:
            native.select_isa("auto")

    def __str__(self) -> str:
        return self.isa


def overrides_of(name: str) -> list[Override]:
    function = PLATFORM.ops().get(name)
    return [] if function is None else [Override(isa, function) for isa in isas()]
