"""What an engine whose ranks Ray starts has to know beyond its settings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final


@dataclass(frozen=True, slots=True)
class RayStart:
    # Pickle of the fields of EngineArgs as given, which every machine resolves anew. A pickle,
    # since they may have functions that only Ray's pickles take along. They may have secrets.
    arguments: bytes = field(repr=False)
    cluster: str = ""  # host:port of the cluster that the program is in; "": none
    placement_group: str = ""  # id, in hex, of the one that the program is in; "": none
    flag: str = "--distributed-executor-backend ray"  # that asks for Ray
    copies_here: int = -1  # of the model, on the engine's machine; -1: as many as it has room for
    has_threads_of_actor: bool = False  # OMP_NUM_THREADS is Ray's, for the program's actor


WITHOUT_RAY: Final = RayStart(b"")
