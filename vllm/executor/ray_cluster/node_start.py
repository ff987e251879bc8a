"""What the agent of a machine is started with. Travels as a pickle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vllm.distributed.place import Place
from vllm.executor.control import WorkerType
from vllm.executor.nodes.meeting import Nodes


@dataclass(frozen=True, slots=True)
class NodeStart:
    arguments: Mapping[str, Any]  # of EngineArgs, as given to the engine
    places: list[Place]  # of all ranks
    nodes: Nodes  # with the number of this one
    worker_type: WorkerType
