"""Attention on HPU."""

from vllm.platforms.hpu.attention.backend import HpuAttention
from vllm.platforms.hpu.attention.settings import AttentionSettings, SliceSettings

__all__ = ["AttentionSettings", "HpuAttention", "SliceSettings"]
