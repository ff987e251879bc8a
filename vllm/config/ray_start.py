"""What an engine whose ranks Ray starts has to know beyond its settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final


@dataclass(frozen=True, slots=True)
class RayStart:
    arguments: Mapping[str, Any]  # of EngineArgs, as given: every machine resolves them anew
    cluster: str = ""  # host:port of the cluster that the program is in; "": none
    placement_group: str = ""  # id, in hex, of the one that the program is in; "": none


WITHOUT_RAY: Final = RayStart({})
