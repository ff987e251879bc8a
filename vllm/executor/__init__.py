"""Executors: how ranks are run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm.executor.base import Executor

if TYPE_CHECKING:
    from vllm.config.vllm import VllmConfig


def make_executor(config: VllmConfig) -> Executor:
    """The executor that the configuration asks for, not started."""
    # Imported where needed: `vllm.executor.base` is imported by code that needs no model stack.
    if config.parallel.distributed_executor_backend == "mp":
        from vllm.executor.multi_process import MultiProcessExecutor
        from vllm.worker.worker import Worker

        return MultiProcessExecutor(config, config.parallel.world_size, Worker)
    from vllm.executor.in_process import InlineExecutor, ThreadedExecutor

    if config.scheduler.pipeline_depth > 1:
        return ThreadedExecutor(config)
    return InlineExecutor(config)
