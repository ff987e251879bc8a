"""A configuration in the making; lives only while `vllm.engine.resolve` runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vllm.config.option import settings_of
from vllm.device.capabilities import Capabilities
from vllm.envs import Environment


@dataclass(slots=True)
class Draft:
    values: dict[str, Any]  # of settings, by their names; checked, old flags folded in
    arguments: Mapping[str, Any]  # as the user gave them
    env: Environment
    capabilities: Capabilities  # of the device

    def of(self, group: type) -> dict[str, Any]:
        """The fields of a config class that users set; undecided ones hold their default."""
        return {s.attribute: self.values[s.name] for s in settings_of(group)}
