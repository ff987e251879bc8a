"""Ranks in processes of their own that have no kernels, as where they were not built."""

from __future__ import annotations

from vllm.config.vllm import VllmConfig
from vllm.distributed.place import Place, make_places
from vllm.executor.distributed import DistributedExecutor
from vllm.executor.local_ranks import LocalRanks
from vllm.platforms.cpu import native
from vllm.worker.worker import Worker


class PlainWorker(Worker):
    """Runs in a process of its own: what it changes there stays there."""

    def __init__(self, config: VllmConfig, place: Place) -> None:
        native.is_available = lambda: False  # type: ignore[assignment]
        super().__init__(config, place)


def plain_executor(config: VllmConfig) -> DistributedExecutor:
    parallel = config.parallel
    places = make_places(parallel.tensor_parallel_size, parallel.pipeline_parallel_size)
    return DistributedExecutor(config, PlainWorker, LocalRanks(), places)
