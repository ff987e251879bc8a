"""The CPU: always there, and the yardstick for every other device."""

from vllm.platforms.cpu.platform import CpuPlatform

__all__ = ["CpuPlatform"]
