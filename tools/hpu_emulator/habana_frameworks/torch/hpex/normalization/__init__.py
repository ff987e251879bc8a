"""Fused normalisation."""

from __future__ import annotations

from habana_frameworks.torch.hpex.normalization.FusedRMSNorm import FusedRMSNorm

__all__ = ["FusedRMSNorm"]

_ABSENT = ("FusedClipNorm", "RmsNormBwdMode")


def __getattr__(name: str) -> object:
    if name in _ABSENT:
        raise ImportError(
            f"habana_frameworks.torch.hpex.normalization.{name} is for training, "
            "which is not emulated"
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
