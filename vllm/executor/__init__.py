"""Executors: how ranks are run."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from vllm.errors import ConfigError
from vllm.executor.base import Executor

if TYPE_CHECKING:
    from vllm.config.vllm import VllmConfig
    from vllm.distributed.place import Place, SpreadExperts
    from vllm.executor.control import WorkerType
    from vllm.executor.nodes.meeting import Nodes
    from vllm.executor.ranks import Ranks, SetAside


def make_executor(config: VllmConfig) -> Executor:
    """The executor that the configuration asks for, not started. Raises ConfigError."""
    parallel = config.parallel
    # What needs the model stack is imported where needed: `vllm.executor.base` is imported by code
    # that does without.
    if parallel.is_externally_launched:
        return _external(config)
    if parallel.node_rank:
        raise ConfigError(
            f"--node-rank {parallel.node_rank}: the engine runs on node 0. On this node use "
            "vllm serve ... --headless."
        )
    if parallel.distributed_executor_backend == "uni":
        return _in_process(config)
    return _distributed(config)


def _in_process(config: VllmConfig) -> Executor:
    from vllm.executor.in_process import InlineExecutor, ThreadedExecutor
    from vllm.worker.worker import Worker

    in_process = ThreadedExecutor if config.scheduler.pipeline_depth > 1 else InlineExecutor
    (place,) = _places(config)
    return in_process(config, Worker, _devices(config), place)


def _external(config: VllmConfig) -> Executor:
    from vllm.executor.external.executor import ExternalExecutor
    from vllm.worker.worker import Worker

    return ExternalExecutor(config, Worker, _places(config), _devices(config))


def _distributed(config: VllmConfig) -> Executor:
    from vllm.executor.distributed import DistributedExecutor
    from vllm.worker.worker import Worker

    return DistributedExecutor(config, Worker, _ranks(config, Worker), _places(config))


def _ranks(config: VllmConfig, worker_type: WorkerType) -> Ranks:
    from vllm.executor.handshake import introduction
    from vllm.executor.local_ranks import LocalRanks
    from vllm.executor.nodes.meeting import Nodes
    from vllm.executor.nodes.ranks import NodeRanks

    if config.parallel.distributed_executor_backend == "ray":
        from vllm.executor.ray_cluster.ranks import RayRanks

        return RayRanks(config, worker_type, introduction(config))
    local = LocalRanks(_devices(config))
    if config.parallel.nnodes == 1:
        return local
    return NodeRanks(local, Nodes.of(config.parallel), introduction(config))


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

    ranks = LocalRanks(_devices(config))
    main = partial(rank_main, worker_type, config)
    Agent(main, ranks, places, nodes).run(introduction(config))


def _devices(config: VllmConfig) -> SetAside:
    from vllm.platforms import platform_of

    return partial(platform_of(config).devices, config)


def _places(config: VllmConfig) -> list[Place]:
    from vllm.distributed.place import make_places

    parallel = config.parallel
    return make_places(
        parallel.tensor_parallel_size,
        parallel.pipeline_parallel_size,
        parallel.nnodes,
        parallel.local_copy,
        parallel.data_parallel_size_local,
        _experts(config),
    )


def _experts(config: VllmConfig) -> SpreadExperts:
    """Where copies meet that share experts.

    A node that is not that of the engine core knows which copies there are, and hears the rest.
    """
    from vllm.distributed.groups import Group
    from vllm.distributed.place import SpreadExperts

    parallel = config.parallel
    if parallel.experts.rendezvous or not config.spreads_experts:
        return parallel.experts
    return SpreadExperts(Group(parallel.data_parallel_rank, parallel.data_parallel_size))
