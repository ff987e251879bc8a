"""Attention on the CPU: torch everywhere, C++ where it was built."""

from __future__ import annotations

from typing import ClassVar

from vllm.attention.paged import Attend, PagedAttention, WriteKV, WriteLatent
from vllm.ops import REFERENCES


class TorchAttention(PagedAttention):
    """Reference ops; runs anywhere, slowly."""

    name = "torch"
    write_kv: ClassVar[WriteKV] = staticmethod(REFERENCES["write_kv"])
    write_latent: ClassVar[WriteLatent] = staticmethod(REFERENCES["write_latent"])
    paged_attention: ClassVar[Attend] = staticmethod(REFERENCES["paged_attention"])
    mla_attention: ClassVar[Attend] = staticmethod(REFERENCES["mla_attention"])
