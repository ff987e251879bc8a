"""Fused kernels of attention and rotary embedding."""

from __future__ import annotations

from habana_frameworks.torch.hpex.kernels.CustomSoftmax import CustomSoftmax
from habana_frameworks.torch.hpex.kernels.Fp8FusedSDPA import fp8_fused_sdpa
from habana_frameworks.torch.hpex.kernels.FusedSDPA import FusedSDPA
from habana_frameworks.torch.hpex.kernels.PySDPA import PySDPA, PySDPAHinted
from habana_frameworks.torch.hpex.kernels.RotaryPosEmbeddingHelper import (
    RotaryPosEmbeddingHelperV1,
    RotaryPosEmbeddingHelperV2,
    RotaryPosEmbeddingHelperV3,
    RotaryPosEmbeddingMode,
    apply_rotary_pos_emb,
)

__all__ = [
    "CustomSoftmax",
    "FusedSDPA",
    "PySDPA",
    "PySDPAHinted",
    "RotaryPosEmbeddingHelperV1",
    "RotaryPosEmbeddingHelperV2",
    "RotaryPosEmbeddingHelperV3",
    "RotaryPosEmbeddingMode",
    "apply_rotary_pos_emb",
    "fp8_fused_sdpa",
]

_ABSENT = ("CTCLoss", "fp8_sdpa_bwd_wrapper", "fp8_sdpa_fwd_wrapper")


def __getattr__(name: str) -> object:
    if name in _ABSENT:
        raise ImportError(
            f"habana_frameworks.torch.hpex.kernels.{name} is for training, which is not emulated"
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
