"""Fused kernels. What is for training is absent."""

from __future__ import annotations

_ABSENT = ("optimizers", "movingavrg", "experimental")


def __getattr__(name: str) -> object:
    if name in _ABSENT:
        raise ImportError(
            f"habana_frameworks.torch.hpex.{name} is for training, which is not emulated"
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
