"""The kind of device."""

from __future__ import annotations

from dataclasses import dataclass

from vllm.config.option import option


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceConfig:
    device: str = option(
        "auto", auto="the one this build is for", help="Kind of device to run on, such as cpu."
    )
