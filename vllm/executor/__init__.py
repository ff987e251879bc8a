"""Executors: how ranks are run."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from vllm.executor.base import Executor

if TYPE_CHECKING:
    from vllm.config.vllm import VllmConfig


def make_executor(config: VllmConfig) -> Executor:
    """The executor that the configuration asks for, not started."""
    # Imported where needed: `vllm.executor.base` is imported by code that needs no model stack.
    from vllm.platforms import platform_of
    from vllm.worker.worker import Worker

    devices = partial(platform_of(config).devices, config)
    if config.parallel.distributed_executor_backend == "mp":
        from vllm.distributed.place import make_places
        from vllm.executor.distributed import DistributedExecutor
        from vllm.executor.local_ranks import LocalRanks

        parallel = config.parallel
        places = make_places(parallel.tensor_parallel_size, parallel.pipeline_parallel_size)
        return DistributedExecutor(config, Worker, LocalRanks(devices), places)
    from vllm.executor.in_process import InlineExecutor, ThreadedExecutor

    in_process = ThreadedExecutor if config.scheduler.pipeline_depth > 1 else InlineExecutor
    return in_process(config, Worker, devices)
