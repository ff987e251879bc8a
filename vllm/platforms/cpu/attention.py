"""Attention on the CPU: C++ where it was built, torch everywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm.attention.paged import PagedAttention
from vllm.device.attention import AttentionSpec
from vllm.ops import REFERENCES
from vllm.platforms.cpu import native

if TYPE_CHECKING:
    from vllm.device.capabilities import Capabilities


class TorchAttention(PagedAttention):
    """Reference ops; runs anywhere, slowly."""

    name = "torch"

    def __init__(self) -> None:
        super().__init__(REFERENCES)


class NativeAttention(PagedAttention):
    """C++ kernels of csrc/cpu."""

    name = "native"

    def __init__(self) -> None:
        super().__init__({**REFERENCES, **native.native_ops()})  # without kernels it rejects all

    @classmethod
    def rejects(cls, spec: AttentionSpec, caps: Capabilities) -> str | None:
        if not native.is_available():
            return "the kernels were not built"
        return super().rejects(spec, caps)
