"""Executors: how ranks are run."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from vllm.errors import ConfigError
from vllm.executor.base import Executor

if TYPE_CHECKING:
    from vllm.config.vllm import VllmConfig
    from vllm.distributed.place import Place
    from vllm.executor.control import WorkerType
    from vllm.executor.nodes.meeting import Nodes
    from vllm.executor.ranks import Ranks


def make_executor(config: VllmConfig) -> Executor:
    """The executor that the configuration asks for, not started. Raises ConfigError."""
    if config.parallel.node_rank:
        raise ConfigError(
            f"--node-rank {config.parallel.node_rank}: the engine runs on node 0. On this node use "
            "vllm serve ... --headless."
        )
    # Imported where needed: `vllm.executor.base` is imported by code that needs no model stack.
    from vllm.platforms import platform_of
    from vllm.worker.worker import Worker

    backend = config.parallel.distributed_executor_backend
    if backend == "ray":
        from vllm.executor.distributed import DistributedExecutor
        from vllm.executor.handshake import introduction
        from vllm.executor.ray_cluster.ranks import RayRanks

        seated = RayRanks(config, Worker, introduction(config))
        return DistributedExecutor(config, Worker, seated, _places(config))
    devices = partial(platform_of(config).devices, config)
    if backend == "mp":
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


def run_node(config: VllmConfig) -> None:
    """Run the ranks of this node, which is not node 0, until node 0 stops the engine.

    Raises ConfigError if the nodes do not meet, and EngineDeadError if the engine fails.
    """
    from vllm.executor.nodes.meeting import Nodes
    from vllm.worker.worker import Worker

    run_agent(config, _places(config), Nodes.of(config.parallel), Worker)


def run_agent(
    config: VllmConfig, places: Sequence[Place], nodes: Nodes, worker_type: WorkerType
) -> None:
    """As `run_node`, of the node `nodes.own`; `places` are those of all ranks."""
    from vllm.executor.handshake import introduction
    from vllm.executor.local_ranks import LocalRanks
    from vllm.executor.nodes.agent import Agent
    from vllm.executor.rank import rank_main
    from vllm.platforms import platform_of

    ranks = LocalRanks(partial(platform_of(config).devices, config))
    main = partial(rank_main, worker_type, config)
    Agent(main, ranks, places, nodes).run(introduction(config))


def _places(config: VllmConfig) -> list[Place]:
    from vllm.distributed.place import make_places

    parallel = config.parallel
    return make_places(
        parallel.tensor_parallel_size, parallel.pipeline_parallel_size, parallel.nnodes
    )
