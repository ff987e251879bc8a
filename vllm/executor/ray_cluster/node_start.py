"""What the agents of a machine are started with. They travel as pickles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vllm.distributed.place import Place
from vllm.executor.control import WorkerType
from vllm.executor.nodes.meeting import Nodes


@dataclass(frozen=True, slots=True)
class NodeStart:
    """Of the agent of ranks."""

    arguments: bytes  # as in RayStart
    places: list[Place]  # of all ranks
    nodes: Nodes  # with the number of this one
    worker_type: WorkerType


@dataclass(frozen=True, slots=True)
class CopiesStart:
    """Of the agent of copies of the model."""

    arguments: bytes  # as in RayStart
    changes: Mapping[str, Any]  # of these arguments, for the machine
    address: str  # of the machine
