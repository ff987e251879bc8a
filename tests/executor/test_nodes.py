"""Ranks on several nodes, here processes that meet over the loopback interface."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.executor import fake_worker as fake
from tests.executor.agents import NodeProcess, executor_of, none_runs, pids_of
from tests.executor.fake_worker import FakeSection, fake_config, fake_plan
from tests.limits import HANG_S, wait_until
from vllm.errors import ConfigError
from vllm.executor.base import ExecutorDied
from vllm.executor.distributed import DistributedExecutor
from vllm.executor.nodes import life
from vllm.executor.nodes.meeting import Nodes
from vllm.executor.watchdog import Limits
from vllm.utils.network_utils import get_open_port


def nodes_of(count: int = 2, limit_s: float = HANG_S) -> Nodes:
    return Nodes(count, 0, "127.0.0.1", get_open_port(), limit_s=limit_s)


def at(nodes: Nodes, own: int, **changes: Any) -> Nodes:
    return replace(nodes, own=own, **changes)


class Engine:
    """Two nodes with a rank each, which have met."""

    def __init__(self, limits: Limits | None = None) -> None:
        nodes = nodes_of()
        self.nodes = nodes
        self.agent = NodeProcess(at(nodes, 1))
        self.executor = executor_of(nodes, limits=limits)
        self.executor.start()
        wait_until(lambda: all(pids_of(self.executor)), "signs of life of all ranks")
        self.pids = pids_of(self.executor)


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine()
    yield engine
    engine.executor.stop()
    engine.agent.kill()
    wait_until(lambda: none_runs(engine.pids), "the end of all ranks")


def news(executor: DistributedExecutor) -> str:
    """What ends the executor."""

    def look() -> bool:
        executor.check_health()
        return False

    with pytest.raises(ExecutorDied) as caught:
        wait_until(look, "the news")
    return str(caught.value)


def test_ranks_of_all_nodes_get_every_plan_and_answer_by_rank(engine: Engine) -> None:
    executor = engine.executor
    handles = [executor.submit(fake_plan(step, num_rows=3)) for step in range(5)]
    for step in reversed(range(5)):
        np.testing.assert_array_equal(handles[step].result().token_ids, 100 * step + np.arange(3))
    assert executor.call("ping") == [0, 1]
    many = 1 << 20  # rows: more bytes than any buffer holds, both ways
    assert len(executor.submit(fake_plan(7, num_rows=many)).result().token_ids) == many
    executor.stop()
    assert engine.agent.end() == "", "a normal end"
    assert none_runs(engine.pids)


def test_four_ranks_on_two_nodes_are_numbered_node_after_node() -> None:
    nodes = nodes_of()
    agent = NodeProcess(at(nodes, 1), size=4)
    executor = executor_of(nodes, size=4)
    assert [facts.free_bytes for facts in executor.start()] == [100, 101, 102, 103]
    executor.stop()
    assert agent.end() == ""


# -- meeting --------------------------------------------------------------------------------------


def test_a_node_with_other_settings_is_named_on_both_nodes() -> None:
    nodes = nodes_of()
    agent = NodeProcess(at(nodes, 1), replace(fake_config(), cache=FakeSection(7)))
    executor = executor_of(nodes)
    with pytest.raises(ConfigError) as caught:
        executor.start()
    executor.stop()
    message = str(caught.value)
    assert message.startswith("node 1 runs with other settings than node 0: the cache settings.")
    assert agent.end() == f"ConfigError: {message}"


@pytest.mark.parametrize("twice", [1, 0])
def test_a_node_rank_that_was_given_twice_is_refused(twice: int) -> None:
    nodes = nodes_of(3)
    agents = [NodeProcess(at(nodes, own), size=3) for own in (1, twice)]
    executor = executor_of(nodes, size=3)
    with pytest.raises(ConfigError, match=f"--node-rank {twice} was given to two nodes"):
        executor.start()
    executor.stop()
    if twice == 0:  # the other agent may have come when node 0 had ended
        refused = agents[1]
    else:  # the second to come, and both have
        wait_until(lambda: not all(agent.process.is_alive() for agent in agents), "the end of one")
        refused = next(agent for agent in agents if not agent.process.is_alive())
    assert f"--node-rank {twice} was given to two nodes" in refused.end()
    for agent in agents:
        agent.kill()


def test_an_address_that_two_nodes_claim_is_refused() -> None:
    nodes = nodes_of()
    agent = NodeProcess(at(nodes, 1, own_ip="127.0.0.1"))
    executor = executor_of(at(nodes, 0, own_ip="127.0.0.1"))
    with pytest.raises(ConfigError, match=r"VLLM_HOST_IP=127.0.0.1 is set on node 0 and on node 1"):
        executor.start()
    executor.stop()
    assert "VLLM_HOST_IP=127.0.0.1" in agent.end()


def test_an_address_that_the_machine_does_not_have_is_refused() -> None:
    executor = executor_of(at(nodes_of(), 0, own_ip="192.0.2.1"))
    with pytest.raises(ConfigError, match=r"VLLM_HOST_IP=192\.0\.2\.1: this machine has no such"):
        executor.start()
    executor.stop()


def test_a_node_that_does_not_come_is_named() -> None:
    nodes = nodes_of(3, limit_s=8.0)
    agent = NodeProcess(at(nodes, 2), size=3)
    executor = executor_of(nodes, size=3)
    with pytest.raises(ExecutorDied, match=rf"node 1 of 3 has not come to {nodes.at} within 8 s"):
        executor.start()
    executor.stop()
    assert "node 1 of 3 has not come" in agent.end()


def test_node_0_must_have_the_address_at_which_it_is_met() -> None:
    executor = executor_of(at(nodes_of(), 0, host="192.0.2.1"))
    with pytest.raises(
        ConfigError, match=r"node 0 cannot be met at 192\.0\.2\.1:\d+ \(--master-addr"
    ):
        executor.start()
    executor.stop()


def test_a_node_that_cannot_reach_node_0_says_where_it_looked() -> None:
    nodes = nodes_of(limit_s=1.0)
    said = NodeProcess(at(nodes, 1)).end()
    assert said.startswith(f"ConfigError: node 1 cannot reach node 0 at {nodes.at}")
    assert "within 1 s" in said


def test_a_node_that_reaches_another_program_says_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            for _ in range(2):
                connection = server.accept()[0]
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                connection.close()

        thread = threading.Thread(target=answer)
        thread.start()
        nodes = Nodes(2, 1, "127.0.0.1", server.getsockname()[1], limit_s=HANG_S)
        said = NodeProcess(nodes).end()
        thread.join()
    assert f"what answers at {nodes.at} (--master-addr, --master-port) is not node 0" in said


def test_strangers_do_not_disturb_the_meeting() -> None:
    nodes = nodes_of()
    executor = executor_of(nodes)

    def disturb() -> None:
        for message in (b"GET / HTTP/1.1\r\n\r\n", b"\0" * 64, b""):
            connection = connected(nodes)
            connection.sendall(message)
            connection.close()
        agents.append(NodeProcess(at(nodes, 1)))

    agents: list[NodeProcess] = []
    thread = threading.Thread(target=disturb)
    thread.start()
    executor.start()
    thread.join()
    assert executor.call("ping") == [0, 1]
    executor.stop()
    assert agents[0].end() == ""


def test_a_node_that_comes_when_all_have_come_is_refused(engine: Engine) -> None:
    late = NodeProcess(at(engine.nodes, 1)).end()
    assert "all nodes of this engine have come already" in late
    assert engine.executor.call("ping") == [0, 1]


def connected(nodes: Nodes) -> socket.socket:
    found: list[socket.socket] = []

    def connects() -> bool:
        try:
            found.append(socket.create_connection((nodes.host, nodes.port)))
        except ConnectionRefusedError:
            return False
        return True

    wait_until(connects, "node 0")
    return found[0]


# -- faults ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_idle", [False, True], ids=["in-a-step", "idle"])
def test_the_death_of_a_rank_on_another_node_names_both(engine: Engine, is_idle: bool) -> None:
    executor, pid = engine.executor, engine.pids[1]
    said = rf"node 1 \(127\.0\.0\.1\): rank 1 \(process {pid}\) was killed by SIGKILL"
    if is_idle:
        os.kill(pid, signal.SIGKILL)
        assert_matches(said, news(executor))
    else:
        with pytest.raises(ExecutorDied, match=said):
            executor.submit(fake_plan(fake.STEP_KILLED_ON_RANK_1)).result()
    assert none_runs(engine.pids)
    assert "rank 1" in engine.agent.end()


def test_a_rank_on_another_node_that_is_stopped_is_named(engine: Engine) -> None:
    os.kill(engine.pids[1], signal.SIGSTOP)
    assert_matches(r"node 1 .*: rank 1 .* was stopped by a signal", news(engine.executor))


def test_the_death_of_an_agent_names_its_node_and_ranks(engine: Engine) -> None:
    engine.agent.kill()
    assert_matches(
        r"node 1 \(127\.0\.0\.1\) is lost: the connection ended.*rank 1", news(engine.executor)
    )
    wait_until(lambda: none_runs(engine.pids), "the end of all ranks")


def test_an_agent_without_a_sign_of_life_is_lost(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(life, "SILENT_S", 2.0)
    os.kill(engine.agent.pid, signal.SIGSTOP)
    assert_matches(
        r"node 1 \(127\.0\.0\.1\) is lost: gave no sign of life for \d+ s", news(engine.executor)
    )
    os.kill(engine.agent.pid, signal.SIGCONT)
    assert "EngineDeadError" in engine.agent.end()


def test_an_error_of_a_rank_on_another_node_names_the_rank() -> None:
    nodes = nodes_of()
    config = fake_config(load_error="model.safetensors: truncated")
    agent = NodeProcess(at(nodes, 1), config)
    executor = executor_of(nodes, config)
    with pytest.raises(Exception, match=r"rank [01]: model.safetensors: truncated"):
        executor.start()
    executor.stop()
    # Node 0 gives up where a rank is still to answer, and stops where all have failed.
    said = agent.end()
    assert said == "" or "EngineDeadError" in said


def test_a_slow_step_says_what_ranks_of_all_nodes_do() -> None:
    engine = Engine(Limits(step_s=2.0, ready_s=HANG_S, tick_s=0.1))
    with pytest.raises(ExecutorDied) as caught:
        engine.executor.submit(fake_plan(fake.STEP_SLOW)).result()
    for rank, pid in enumerate(engine.pids):
        assert_matches(
            rf"rank {rank} \(process {pid}\) has not answered: in step 904 for \d+ s",
            str(caught.value),
        )
    assert "node 0 has given up the engine" in engine.agent.end()
    assert none_runs(engine.pids)


def run_node_0(said: Any, nodes: Nodes) -> None:
    executor = executor_of(nodes)
    executor.start()
    wait_until(lambda: all(pids_of(executor)))
    for pid in pids_of(executor):
        said.put(pid)
    time.sleep(HANG_S)


def test_agents_and_ranks_end_with_node_0() -> None:
    context = multiprocessing.get_context("spawn")
    said, nodes = context.Queue(), nodes_of()
    agent = NodeProcess(at(nodes, 1))
    node_0 = context.Process(target=run_node_0, args=(said, nodes))
    node_0.start()
    pids = [said.get(timeout=HANG_S) for _ in range(2)]
    node_0.kill()
    node_0.join()
    assert f"EngineDeadError: node 0 at {nodes.at} is lost: the connection ended" in agent.end()
    wait_until(lambda: none_runs(pids), "the end of all ranks")


def assert_matches(pattern: str, text: str) -> None:
    assert re.search(pattern, text), text
