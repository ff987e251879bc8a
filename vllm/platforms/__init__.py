"""Platforms: `platform_of` is the only door to a device's implementation."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from vllm import envs
from vllm.errors import ConfigError
from vllm.platforms.base import Platform

if TYPE_CHECKING:
    from vllm.config.vllm import VllmConfig

    current_platform: Platform

__all__ = [
    "Platform",
    "current_platform",
    "keep_recipes",
    "platform_of",
]


@cache
def _named(name: str) -> Platform:
    if name == "cpu":
        from vllm.platforms.cpu import CpuPlatform

        return CpuPlatform()
    if name == "hpu":
        from vllm.platforms.hpu import HpuPlatform

        return HpuPlatform()
    if name == "cuda":
        raise ConfigError("--device cuda: not supported by this version yet; use hpu or cpu")
    raise ConfigError(f"--device {name}: no such device; choose auto, hpu or cpu")


def keep_recipes(directory: str) -> None:
    """Keep what devices compile. Before any is looked for, which may load its plugin already.

    Raises ConfigError.
    """
    from vllm.platforms.hpu import bridge

    if bridge.is_installed():
        bridge.keep_recipes(directory)


@cache
def _found() -> str:
    """The kind of device this machine has."""
    from vllm.platforms.hpu import bridge

    return "hpu" if bridge.num_devices() > 0 else "cpu"


def platform_of(which: str | VllmConfig = "auto") -> Platform:
    """The platform named (or that of a config); the same object every time. Raises ConfigError."""
    name = which if isinstance(which, str) else which.device.device
    if name == "auto":
        name = envs.VLLM_TARGET_DEVICE
    return _named(_found() if name == "auto" else name)


def __getattr__(name: str) -> Any:
    """`current_platform`, vLLM's name for that of this machine: looked for when it is first used,
    since that may load a device's plugin."""
    if name != "current_platform":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return platform_of()


def __dir__() -> list[str]:
    return sorted([*globals(), "current_platform"])
