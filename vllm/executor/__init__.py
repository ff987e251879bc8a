"""Executors: how ranks are run."""

from __future__ import annotations

from vllm.config.vllm import VllmConfig
from vllm.executor.base import Executor


def make_executor(config: VllmConfig) -> Executor:
    """The executor that the configuration asks for, not started."""
    # Imported where needed: `vllm.executor.base` is imported by code that needs no model stack.
    if config.parallel.distributed_executor_backend == "mp":
        from vllm.executor.multi_process import MultiProcessExecutor

        return MultiProcessExecutor(config, config.parallel.world_size)
    from vllm.executor.in_process import InlineExecutor, ThreadedExecutor

    if config.scheduler.pipeline_depth > 1:
        return ThreadedExecutor(config)
    return InlineExecutor(config)
