"""Nodes of an engine as processes of this machine: the executor here, agents beside it."""

from __future__ import annotations

import functools
import multiprocessing
from typing import Any

from tests.executor.fake_worker import FakeWorker, fake_config
from tests.limits import HANG_S, is_running
from vllm.distributed.place import make_places
from vllm.executor import silence
from vllm.executor.distributed import DistributedExecutor
from vllm.executor.handshake import introduction
from vllm.executor.local_ranks import LocalRanks
from vllm.executor.nodes.agent import Agent
from vllm.executor.nodes.meeting import Nodes
from vllm.executor.nodes.ranks import NodeRanks
from vllm.executor.rank import rank_main
from vllm.executor.watchdog import Limits

_spawn = multiprocessing.get_context("spawn")


class NodeProcess:
    """Another node: an agent and its ranks."""

    def __init__(self, nodes: Nodes, config: Any = None, size: int = 2) -> None:
        self._said = _spawn.Queue()
        config = config or fake_config()
        self.process = _spawn.Process(target=_run, args=(self._said, nodes, config, size))
        self.process.start()

    @property
    def pid(self) -> int:
        return self.process.pid or 0

    def end(self) -> str:
        """Wait for it; the error that ended it, "" for none."""
        self.process.join(HANG_S)
        assert self.process.exitcode is not None, "the agent goes on"
        if self.process.exitcode:
            return f"exit code {self.process.exitcode}"
        return str(self._said.get(timeout=HANG_S))

    def kill(self) -> None:
        self.process.kill()
        self.process.join()


def _run(said: Any, nodes: Nodes, config: Any, size: int) -> None:
    silence.STOPPED_S = 0.6  # type: ignore[misc]
    main = functools.partial(rank_main, FakeWorker, config)
    try:
        Agent(main, LocalRanks(), make_places(size, 1, nodes.count), nodes).run(
            introduction(config)
        )
    except Exception as error:
        said.put(f"{type(error).__name__}: {error}")
    else:
        said.put("")


def executor_of(
    nodes: Nodes, config: Any = None, size: int = 2, limits: Limits | None = None
) -> DistributedExecutor:
    config = config or fake_config()
    ranks = NodeRanks(LocalRanks(), nodes, introduction(config))
    return DistributedExecutor(config, FakeWorker, ranks, make_places(size, 1, nodes.count), limits)


def pids_of(executor: DistributedExecutor) -> list[int]:
    """Of the ranks of all nodes, by rank."""
    return [state.pid for state in executor.ranks.states(0.0)]


def none_runs(pids: list[int]) -> bool:
    return not any(map(is_running, pids))
