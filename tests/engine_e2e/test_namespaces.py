"""Nodes that reach each other through a cable only, and what happens to them, or to the cable."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.engine_e2e.faulty_worker import FAULT, MET, fault
from tests.engine_e2e.namespaces import Machine, two_machines
from tests.engine_e2e.test_nodes import ROOT, SHARED, run, words_of
from tests.engine_e2e.test_rank_faults import BUSY, DOING, SAID
from tests.engine_e2e.test_tensor_parallel import engine
from tests.hpu_emulator.conftest import Emulated, emulated
from tests.limits import HANG_S, wait_until
from tools.tiny_models import random_checkpoint
from vllm.executor.nodes.life import BEAT_S, SILENT_S

__all__ = ["emulated"]
pytestmark = pytest.mark.engine

TP2 = {"tensor_parallel_size": 2}
PP2 = {"pipeline_parallel_size": 2}
LAYOUTS = {"tp2": TP2, "pp2": PP2}
PHASES = {
    "joining": "joining the other ranks",
    **{phase: DOING[phase] for phase in BUSY},
    "step": rf"({DOING['step']}|{DOING['idle']})",  # a stage is idle between steps
}
NODE_1 = r"ExecutorDied: node 1 \(10\.77\.0\.2\)"
NODE_0_IS_LOST = r"EngineDeadError: node 0 at 10\.77\.0\.1:29501 is lost: "
SILENT = r"gave no sign of life for \d+ s"
# Whichever shows first: a sign that does not come, what is sent, or the other machine's address.
GONE = rf"({SILENT}|the connection ended: (Connection timed out|No route to host))"
NOTICED_S = SILENT_S + 20.0  # the limit, and what a busy machine adds


class Nodes:
    """Two nodes on two machines; each is a process that says something when it ends."""

    def __init__(self, machines: tuple[Machine, Machine], model: Path, folder: Path) -> None:
        self.machines = machines
        self.processes: dict[int, subprocess.Popen[str]] = {}  # by node
        self.model = model
        self._met = folder / "met"

    def start(
        self, number: int, words: list[str], environment: dict[str, str] | None = None
    ) -> None:
        environment = environment or dict(os.environ)
        self.processes[number] = subprocess.Popen(
            self.machines[number].command(sys.executable, "-m", *words),
            env={**environment, MET: str(self._met)},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def start_node(
        self,
        number: int,
        what: str,
        environment: dict[str, str] | None = None,
        **options: Any,
    ) -> None:
        """A program of tests.engine_e2e.node."""
        arguments = {
            "model": str(self.model),
            "master_addr": self.machines[0].address,
            "nnodes": 2,
            "node_rank": number,
            **SHARED,
            **options,
        }
        self.start(number, ["tests.engine_e2e.node", what, json.dumps(arguments)], environment)

    def start_headless(self, environment: dict[str, str] | None = None, **options: Any) -> None:
        """`vllm serve --headless` on the second machine."""
        flags = {"master_addr": self.machines[0].address, "nnodes": 2, "node_rank": 1, **SHARED}
        serve = ["vllm.entrypoints.cli.main", "serve", str(self.model), "--headless"]
        self.start(1, [*serve, *words_of(flags | options)], environment)

    def met_s(self) -> float:
        """When the fault was met, of time.monotonic(); waits for it."""
        wait_until(self._met.exists, "the fault")
        return float(self._met.read_text())

    def are_there(self) -> None:
        """Wait until rank 1 is in its phase, and node 0 has heard of it."""
        self.met_s()
        time.sleep(3 * BEAT_S)

    def end(self, number: int) -> tuple[int, str, str]:
        """Exit code, what it printed, and its log."""
        printed, log = self.processes[number].communicate(timeout=HANG_S)
        return self.processes[number].returncode, printed, log

    def said(self, number: int) -> dict[str, Any]:
        code, printed, log = self.end(number)
        assert code == 0, log
        found: dict[str, Any] = json.loads(printed.splitlines()[-1])
        return found

    def leave_nothing(self) -> None:
        for machine in self.machines:
            wait_until(lambda of=machine: not of.pids(), "the end of all processes")
            assert not list(machine.shm.iterdir())


@pytest.fixture
def nodes(tiny_story: Path, tmp_path: Path) -> Iterator[Nodes]:
    with ExitStack() as stack:
        try:
            machines = stack.enter_context(two_machines(tmp_path))
        except OSError as error:
            pytest.skip(f"network namespaces cannot be made here: {error}")
        nodes = Nodes(machines, tiny_story, tmp_path)
        try:
            yield nodes
            nodes.leave_nothing()
        finally:
            for process in nodes.processes.values():
                process.kill()
                process.communicate()


@pytest.fixture(scope="module")
def expected(tiny_story: Path) -> list[list[int]]:
    return run(engine(tiny_story, 1))


@pytest.mark.product
@pytest.mark.parametrize("layout", LAYOUTS)
def test_tokens_are_those_of_one_rank(nodes: Nodes, layout: str, expected: list[list[int]]) -> None:
    nodes.start_headless(**LAYOUTS[layout])
    nodes.start_node(0, "tokens", **LAYOUTS[layout])
    assert nodes.said(0).get("tokens") == expected
    code, _, log = nodes.end(1)
    assert code == 0 and "Node 0 has stopped the engine" in log


@pytest.mark.parametrize("layout", ["pp2", pytest.param("tp2", marks=pytest.mark.product)])
def test_tokens_of_emulated_hpus_are_those_of_one_rank(
    nodes: Nodes, emulated: Emulated, layout: str, expected: list[list[int]]
) -> None:
    options = {**LAYOUTS[layout], "device": "hpu", "block_size": 16, "max_num_seqs": 2}
    environment = emulated.environment(PT_HPU_LAZY_MODE="1")
    nodes.start_headless(environment, **options)
    nodes.start_node(0, "tokens", environment, **options)
    assert nodes.said(0).get("tokens") == expected
    code, _, log = nodes.end(1)
    assert code == 0 and "(rank 1)" in log


def start_copies(nodes: Nodes, what: str, **options: Any) -> None:
    """A copy of the model on each machine, behind a program on the first."""
    shared = {
        **options,
        "nnodes": 1,
        "node_rank": 0,
        "data_parallel_size": 2,
        "data_parallel_size_local": 1,
        "data_parallel_address": nodes.machines[0].address,
    }
    nodes.start_headless(**shared, data_parallel_start_rank=1)
    nodes.start_node(0, what, **shared)


def test_copies_on_two_machines_write_what_one_rank_writes(
    nodes: Nodes, expected: list[list[int]]
) -> None:
    start_copies(nodes, "tokens")
    assert nodes.said(0).get("tokens") == expected
    code, _, log = nodes.end(1)
    assert code == 0 and "The server has ended" in log


@pytest.mark.product
@pytest.mark.parametrize("ranks", [1, 2])
def test_copies_on_two_machines_share_experts(nodes: Nodes, tmp_path: Path, ranks: int) -> None:
    nodes.model = random_checkpoint.make("deepseek_v3", tmp_path / "mixture")
    start_copies(nodes, "tokens", enable_expert_parallel=True, tensor_parallel_size=ranks)
    assert nodes.said(0)["tokens"] == run(engine(nodes.model, 1))
    code, _, log = nodes.end(1)
    assert code == 0 and "The server has ended" in log


@pytest.mark.product
def test_a_machine_that_is_lost_ends_what_shares_its_experts(nodes: Nodes, tmp_path: Path) -> None:
    """The copy of the other one can do nothing alone, and waits for it to come again."""
    nodes.model = random_checkpoint.make("mixtral", tmp_path / "mixture")
    start_copies(nodes, "lose", enable_expert_parallel=True)
    printed = nodes.processes[0].stdout
    assert printed is not None
    assert "is_running" in printed.readline()
    nodes.machines[1].cut()
    lost = nodes.said(0)["tokens"]
    assert len(lost) == 4
    for error in lost:
        assert "engine core 1" in error or "copies 1 to 1" in error
    code, _, log = nodes.end(1)
    assert code == 1 and "the server at 10.77.0.1:29550 is lost" in log


def test_a_program_survives_the_loss_of_the_machine_with_a_copy(nodes: Nodes) -> None:
    start_copies(nodes, "survive")
    printed = nodes.processes[0].stdout
    assert printed is not None
    assert "is_running" in printed.readline()
    cut_s = time.monotonic()
    nodes.machines[1].cut()
    lost = json.loads(printed.readline())
    gone = r"the machine with copies 1 to 1 \(10\.77\.0\.2\) (is gone|gave no sign of life)"
    assert re.search(gone, lost["lost"])
    assert lost["at_s"] - cut_s < NOTICED_S
    assert [len(tokens) for tokens in nodes.said(0)["tokens"]] == [60] * 4
    code, _, log = nodes.end(1)
    assert code == 1 and "the server at 10.77.0.1:29550 is lost" in log


# -- faults ---------------------------------------------------------------------------------------


def cases(in_every_run: set[tuple[str, ...]], *whats: Collection[str]) -> list[Any]:
    """Every combination, of which all but some are left to the full product."""
    return [
        pytest.param(*case, marks=[] if case in in_every_run else [pytest.mark.product])
        for case in itertools.product(*whats)
    ]


def meet(nodes: Nodes, layout: str, phase: str, what: str) -> None:
    """Start both nodes, of which rank 1, on node 1, meets a fault in this phase."""
    environment = {**os.environ, FAULT: fault(1, phase, what)}
    nodes.start_node(1, "agent", environment, **LAYOUTS[layout])
    nodes.start_node(0, "busy", environment, **LAYOUTS[layout])


def tell(nodes: Nodes, number: int, since_s: float) -> tuple[str, float]:
    """What ended a node, and how long after the fault."""
    said = nodes.said(number)
    took_s = said["at_s"] - since_s
    print(f"node {number} after {took_s:.1f} s: {said['error']}")
    return said["error"], took_s


@pytest.mark.parametrize(("layout", "phase"), cases({("pp2", "step")}, LAYOUTS, PHASES))
def test_a_cable_that_is_cut_ends_both_nodes_with_the_name_of_the_other(
    nodes: Nodes, layout: str, phase: str
) -> None:
    meet(nodes, layout, phase, "nothing" if phase == "step" else "hang")
    nodes.are_there()
    cut_s = time.monotonic()
    nodes.machines[1].cut()
    error, took_s = tell(nodes, 0, cut_s)
    assert re.search(f"{NODE_1} is lost: {GONE}.* rank 1 was {PHASES[phase]}", error), error
    assert took_s < NOTICED_S
    error, took_s = tell(nodes, 1, cut_s)
    assert re.search(NODE_0_IS_LOST, error) and took_s < NOTICED_S, error


@pytest.mark.parametrize(("layout", "what", "phase"), cases(set(), LAYOUTS, SAID, BUSY))
def test_an_agent_that_dies_or_is_stopped_is_named_with_its_rank(
    nodes: Nodes, layout: str, what: str, phase: str
) -> None:
    meet(nodes, layout, phase, "nothing" if phase == "step" else "hang")
    nodes.are_there()
    agent, fault_s = nodes.processes[1], time.monotonic()
    agent.send_signal(signal.Signals[what])
    error, took_s = tell(nodes, 0, fault_s)
    how = SILENT if what == "SIGSTOP" else "the connection ended"
    assert re.search(f"{NODE_1} is lost: {how}.* rank 1 was {PHASES[phase]}", error), error
    assert took_s < NOTICED_S
    if what == "SIGSTOP":
        agent.send_signal(signal.SIGCONT)
        error, _ = tell(nodes, 1, fault_s)
        assert re.search(f"({NODE_0_IS_LOST}|EngineDeadError: node 0 has given up)", error), error


@pytest.mark.parametrize(("layout", "what", "phase"), cases(set(), LAYOUTS, SAID, BUSY))
def test_a_rank_of_another_node_that_dies_or_is_stopped_is_named_with_its_node(
    nodes: Nodes, layout: str, what: str, phase: str
) -> None:
    meet(nodes, layout, phase, what)
    fault_s = nodes.met_s()
    said = rf"rank 1 \(process \d+\) {SAID[what]}.* It was {PHASES[phase]}"
    error, took_s = tell(nodes, 0, fault_s)
    assert re.search(f"{NODE_1}: {said}", error) and took_s < NOTICED_S, error
    error, took_s = tell(nodes, 1, fault_s)
    assert re.search(f"EngineDeadError: {said}", error) and took_s < NOTICED_S, error


# -- meeting --------------------------------------------------------------------------------------


@pytest.mark.product
def test_a_cable_that_is_cut_while_nodes_meet_loses_the_node_that_had_come(
    nodes: Nodes,
) -> None:
    environment = {**os.environ, "VLLM_ENGINE_READY_TIMEOUT_S": "40"}
    three = {"nnodes": 3, "pipeline_parallel_size": 3}
    nodes.start_node(1, "agent", environment, **three)
    nodes.start_node(0, "tokens", environment, **three)
    log = nodes.processes[0].stderr
    assert log is not None
    while "node 1 (10.77.0.2) has come: 2 of 3 nodes" not in (line := log.readline()):
        assert line, "node 0 ended"
    cut_s = time.monotonic()
    nodes.machines[1].cut()
    error, took_s = tell(nodes, 1, cut_s)
    assert "what answers at 10.77.0.1:29501" in error and took_s < NOTICED_S
    assert re.search(f"it has ended: {GONE}", error)
    error, _ = tell(nodes, 0, cut_s)
    assert "node 1, 2 of 3 has not come to 10.77.0.1:29501 within 40 s" in error


@pytest.mark.product
@pytest.mark.parametrize("address", ["10.77.0.9", "10.78.0.1"], ids=["nobody", "no-network"])
def test_an_address_of_nobody_is_named_by_the_node_that_looked_there(
    nodes: Nodes, address: str
) -> None:
    nodes.start_headless(**TP2, master_addr=address)
    code, _, log = nodes.end(1)
    assert code == 2
    said = f"node 1 cannot reach node 0 at {address}:29501 (--master-addr, --master-port) within 10"
    assert said in log


@pytest.mark.product
def test_an_address_of_another_machine_is_refused_by_node_0(nodes: Nodes) -> None:
    nodes.start_node(0, "tokens", **TP2, master_addr="10.77.0.2")
    error, _ = tell(nodes, 0, time.monotonic())
    assert "node 0 cannot be met at 10.77.0.2:29501 (--master-addr, --master-port)" in error


@pytest.mark.product
def test_a_node_that_does_not_come_is_named(nodes: Nodes) -> None:
    environment = {**os.environ, "VLLM_ENGINE_READY_TIMEOUT_S": "3"}
    nodes.start_node(0, "tokens", environment, **TP2)
    error, _ = tell(nodes, 0, time.monotonic())
    assert "node 1 of 2 has not come to 10.77.0.1:29501 within 3 s" in error
