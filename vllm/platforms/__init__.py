"""Platforms: `current_platform` is the only door to a device's implementation."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from vllm import envs
from vllm.errors import ConfigError
from vllm.platforms.base import Capabilities, Device, HostCopy, MemoryInfo, Platform

if TYPE_CHECKING:
    from vllm.config.vllm import VllmConfig

__all__ = ["Capabilities", "Device", "HostCopy", "MemoryInfo", "Platform", "current_platform"]

_PLANNED = ("hpu", "cuda")


@cache
def _named(name: str) -> Platform:
    if name == "cpu":
        from vllm.platforms.cpu import CpuPlatform

        return CpuPlatform()
    if name in _PLANNED:
        raise ConfigError(f"--device {name}: not supported by this version yet; use --device cpu")
    raise ConfigError(f"--device {name}: no such device; choose auto or cpu")


def current_platform(which: str | VllmConfig = "auto") -> Platform:
    """The platform named (or that of a config); the same object every time. Raises ConfigError."""
    name = which if isinstance(which, str) else which.device.device
    return _named(envs.VLLM_TARGET_DEVICE if name == "auto" else name)
