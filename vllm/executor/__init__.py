"""Executors: how ranks are run."""

from __future__ import annotations

from vllm.config.vllm import VllmConfig
from vllm.executor.base import Executor


def make_executor(config: VllmConfig) -> Executor:
    """The executor that the configuration asks for, not started."""
    # Imported where chosen: the multi-process one must not load a model stack into its engine.
    if config.parallel.distributed_executor_backend == "mp":
        from vllm.executor.multi_process import MultiProcessExecutor

        return MultiProcessExecutor(config)
    from vllm.executor.in_process import InlineExecutor, ThreadedExecutor

    if config.scheduler.pipeline_depth > 1:
        return ThreadedExecutor(config)
    return InlineExecutor(config)
