"""What the agent of a machine is started with. Travels as a pickle."""

from __future__ import annotations

from dataclasses import dataclass

from vllm.distributed.place import Place
from vllm.executor.control import WorkerType
from vllm.executor.nodes.meeting import Nodes


@dataclass(frozen=True, slots=True)
class NodeStart:
    arguments: bytes  # as in RayStart
    places: list[Place]  # of all ranks
    nodes: Nodes  # with the number of this one
    worker_type: WorkerType
