"""Intel Gaudi, through the `habana_frameworks` plugin of PyTorch."""

from vllm.platforms.hpu.platform import HpuPlatform

__all__ = ["HpuPlatform"]
