"""Executors: how ranks are run."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from vllm.errors import ConfigError
from vllm.executor.base import Executor

if TYPE_CHECKING:
    from vllm.config.vllm import VllmConfig
    from vllm.distributed.place import Place
    from vllm.executor.ranks import Ranks


def make_executor(config: VllmConfig) -> Executor:
    """The executor that the configuration asks for, not started. Raises ConfigError."""
    if config.parallel.is_externally_launched:
        return _external(config)
    if config.parallel.node_rank:
        raise ConfigError(
            f"--node-rank {config.parallel.node_rank}: the engine runs on node 0. On this node use "
            "vllm serve ... --headless."
        )
    # Imported where needed: `vllm.executor.base` is imported by code that needs no model stack.
    from vllm.platforms import platform_of
    from vllm.worker.worker import Worker

    devices = partial(platform_of(config).devices, config)
    if config.parallel.distributed_executor_backend == "mp":
        from vllm.executor.distributed import DistributedExecutor
        from vllm.executor.local_ranks import LocalRanks

        local = LocalRanks(devices)
        ranks: Ranks = local
        if config.parallel.nnodes > 1:
            from vllm.executor.handshake import introduction
            from vllm.executor.nodes.meeting import Nodes
            from vllm.executor.nodes.ranks import NodeRanks

            ranks = NodeRanks(local, Nodes.of(config.parallel), introduction(config))
        return DistributedExecutor(config, Worker, ranks, _places(config))
    from vllm.executor.in_process import InlineExecutor, ThreadedExecutor

    in_process = ThreadedExecutor if config.scheduler.pipeline_depth > 1 else InlineExecutor
    return in_process(config, Worker, devices)


def _external(config: VllmConfig) -> Executor:
    from vllm.executor.external.executor import ExternalExecutor
    from vllm.platforms import platform_of
    from vllm.worker.worker import Worker

    devices = partial(platform_of(config).devices, config)
    return ExternalExecutor(config, Worker, _places(config), devices)


def run_node(config: VllmConfig) -> None:
    """Run the ranks of this node, which is not node 0, until node 0 stops the engine.

    Raises ConfigError if the nodes do not meet, and EngineDeadError if the engine fails.
    """
    from vllm.executor.handshake import introduction
    from vllm.executor.local_ranks import LocalRanks
    from vllm.executor.nodes.agent import Agent
    from vllm.executor.nodes.meeting import Nodes
    from vllm.executor.rank import rank_main
    from vllm.platforms import platform_of
    from vllm.worker.worker import Worker

    ranks = LocalRanks(partial(platform_of(config).devices, config))
    main = partial(rank_main, Worker, config)
    nodes = Nodes.of(config.parallel)
    Agent(main, ranks, _places(config), nodes).run(introduction(config))


def _places(config: VllmConfig) -> list[Place]:
    from vllm.distributed.place import make_places

    parallel = config.parallel
    return make_places(
        parallel.tensor_parallel_size, parallel.pipeline_parallel_size, parallel.nnodes
    )
