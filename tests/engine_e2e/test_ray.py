"""An engine whose ranks Ray places, on a cluster of raylets of this machine."""

from __future__ import annotations

import json
import os
import pickle
import re
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.engine_e2e.faulty_worker import FAULT, MET, FaultyWorker, fault
from tests.engine_e2e.ray_cluster import VARIABLES, RayCluster
from tests.engine_e2e.test_nodes import generate_on
from tests.engine_e2e.test_rank_faults import MARK, marked
from tests.engine_e2e.test_tensor_parallel import PARAMS, PROMPTS, engine, outputs_of
from tests.limits import wait_until
from tools.tiny_models import random_checkpoint
from vllm import LLM
from vllm.distributed.place import make_places
from vllm.engine import core
from vllm.errors import ConfigError, EngineDeadError
from vllm.executor.base import ExecutorDied
from vllm.executor.distributed import DistributedExecutor
from vllm.executor.handshake import introduction
from vllm.executor.ray_cluster.environment import EXCLUDED
from vllm.executor.ray_cluster.ranks import RayRanks

ray = pytest.importorskip("ray", reason="ray is not installed")
pytestmark = pytest.mark.engine

SAID = {"SIGKILL": "was killed by SIGKILL", "SIGSTOP": "was stopped by a signal"}


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    """Two machines with two CPUs each, both of which a rank needs in these tests."""
    cluster = RayCluster()
    try:
        for _ in range(2):
            cluster.add()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(autouse=True)
def mark(cluster: RayCluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """In the environment of every process of the engine; none may be left in the end."""
    mark = uuid.uuid4().hex
    monkeypatch.setenv(MARK, mark)
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    monkeypatch.setenv("VLLM_RAY_PER_WORKER_GPUS", "2")
    monkeypatch.setenv("VLLM_RAY_EXTRA_ENV_VAR_PREFIXES_TO_COPY", "TEST_, OTHER_")
    monkeypatch.setenv("VLLM_CONFIG_ROOT", str(tmp_path))
    yield mark
    wait_until(lambda: not marked(mark), "the end of all processes")
    assert not ray.is_initialized()
    wait_until(partial(is_free, cluster), "the return of all bundles")


def is_free(cluster: RayCluster) -> bool:
    ray.init(address=cluster.address, configure_logging=False, log_to_driver=False)
    try:
        states = {group["state"] for group in ray.util.placement_group_table().values()}
        return states <= {"REMOVED"}
    finally:
        ray.shutdown()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_checkpoint.make("llama", tmp_path_factory.mktemp("ray") / "model")


@pytest.fixture(scope="module")
def expected(model: Path) -> list[list[int]]:
    return run(engine(model, 1))


def run(llm: LLM) -> list[list[int]]:
    try:
        return outputs_of(llm)
    finally:
        llm.llm_engine.shutdown()


def over_ray(model: Path, ranks: int, **options: Any) -> LLM:
    return engine(model, ranks, distributed_executor_backend="ray", **options)


def nodes_of(llm: LLM) -> list[int]:
    return [place.node for place in llm.llm_engine.client.core.executor.ranks.places]


@pytest.mark.parametrize(
    ("ranks", "stages"),
    [
        pytest.param(2, 1, id="tp2"),
        pytest.param(1, 2, id="pp2", marks=pytest.mark.product),
    ],
)
def test_ranks_on_two_machines_write_the_tokens_of_one(
    ranks: int, stages: int, model: Path, expected: list[list[int]]
) -> None:
    llm = over_ray(model, ranks, pipeline_parallel_size=stages)
    assert nodes_of(llm) == [1, 2]
    assert run(llm) == expected


@pytest.mark.product
def test_stages_of_two_ranks_are_a_machine_each(
    model: Path, expected: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VLLM_RAY_PER_WORKER_GPUS")
    llm = over_ray(model, 2, pipeline_parallel_size=2)
    assert nodes_of(llm) == [1, 1, 2, 2]
    assert run(llm) == expected


def test_the_environment_is_whole_before_a_rank_begins(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ranks see it, and as their processes began."""
    travels = {
        "HF_TOKEN": "hf_secret",
        "RUNTIME_SCALE_PATCHING": "1",
        "HLS_NUM": "8",
        "PT_HPU_SOMETHING": "x",
        "OTHER_VARIABLE": "asked for by its beginning",
    }
    stays = {"HLS_MODULE_ID": "3", "UNKNOWN_VARIABLE": "1", "HF_EXCLUDED": "1"}
    for name, value in {**travels, **stays}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("VLLM_ALLOW_INSECURE_SERIALIZATION", "1")
    (tmp_path / EXCLUDED).write_text(json.dumps(["HF_EXCLUDED"]))
    llm = over_ray(model, 2)
    try:
        for begun in llm.collective_rpc(_environment_at_birth):
            assert {name: begun.get(name) for name in travels} == travels
            assert not begun.keys() & stays.keys()
    finally:
        llm.llm_engine.shutdown()


def _environment_at_birth(worker: Any) -> dict[str, str]:
    text = Path("/proc/self/environ").read_bytes().decode()
    return dict(item.split("=", 1) for item in text.split("\0") if "=" in item)


def test_too_few_machines_are_an_error_with_both_numbers(model: Path) -> None:
    said = (
        "The 3 ranks .* need a bundle of 2 CPU each, and the Ray cluster of 2 nodes has room for 2"
    )
    with pytest.raises(ConfigError, match=said):
        over_ray(model, 1, pipeline_parallel_size=3)


def test_a_cluster_that_is_not_there_is_named(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.2:9")
    with pytest.raises(ConfigError, match=r"no Ray cluster answers at 127\.0\.0\.2:9"):
        over_ray(model, 2)
    monkeypatch.setenv("RAY_ADDRESS", "ray://127.0.0.2:10001")
    with pytest.raises(ConfigError, match="Ray client"):
        over_ray(model, 2)


def test_a_model_that_one_machine_lacks_is_named_with_it(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machines resolve the arguments themselves; here they are given others."""
    config = engine_config(model)
    arguments = {**pickle.loads(config.parallel.ray.arguments), "model": "/nowhere/model"}
    elsewhere = replace(config.parallel.ray, arguments=pickle.dumps(arguments))
    config = replace(config, parallel=replace(config.parallel, ray=elsewhere))
    executor = executor_of(config)
    with pytest.raises(ExecutorDied, match=r"node \d \(127\.0\.0\.\d\).*/nowhere/model"):
        executor.start()
    executor.stop()


# -- within a program of Ray's --------------------------------------------------------------------


def test_a_program_in_a_placement_group_has_its_ranks_there(
    cluster: RayCluster, model: Path, expected: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.util.placement_group import placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    monkeypatch.setenv("VLLM_RAY_PER_WORKER_GPUS", "1")
    ray.init(address=cluster.address, configure_logging=False, log_to_driver=False)
    try:
        group = placement_group([{"CPU": 1}] * 3)
        program = ray.remote(Program).options(
            num_cpus=1, scheduling_strategy=PlacementGroupSchedulingStrategy(group, 1)
        )
        mark = os.environ[MARK]
        actor = program.remote({MARK: mark, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"})
        said = "ranks .* need a bundle of 1 CPU each, and the placement group .* has 3 such"
        assert re.search(said, ray.get(actor.error.remote(str(model), 4, "")))
        assert "there is no bundle 7" in ray.get(actor.error.remote(str(model), 2, "7,0"))
        # Bundle 1 is the program's own.
        tokens, bundles = ray.get(actor.tokens.remote(str(model), 2, "2,0"))
        assert tokens == expected[: len(PROMPTS)]
        assert bundles == 3, "no bundle was made besides"
        ray.kill(actor)
        ray.util.remove_placement_group(group)
    finally:
        ray.shutdown()


class Program:
    """Of a user, in an actor."""

    def __init__(self, variables: dict[str, str]) -> None:
        os.environ.update(variables)

    def tokens(self, model: str, ranks: int, bundles: str) -> tuple[list[list[int]], int]:
        os.environ["VLLM_RAY_BUNDLE_INDICES"] = bundles
        llm = over_ray(Path(model), ranks)
        groups = ray.util.placement_group_table().values()
        count = sum(len(group["bundles"]) for group in groups if group["state"] == "CREATED")
        prompts = [{"prompt_token_ids": prompt} for prompt in PROMPTS]
        found = llm.generate(prompts, PARAMS["greedy"](), use_tqdm=False)
        llm.llm_engine.shutdown()
        return [list(one.outputs[0].token_ids) for one in found], count

    def error(self, model: str, ranks: int, bundles: str) -> str:
        os.environ["VLLM_RAY_BUNDLE_INDICES"] = bundles
        try:
            over_ray(Path(model), ranks)
        except (ConfigError, EngineDeadError) as error:
            return str(error)
        return ""


# -- faults ---------------------------------------------------------------------------------------


def engine_config(model: Path, **options: Any) -> Any:
    from vllm import EngineArgs

    return EngineArgs(
        model=str(model),
        dtype="float32",
        max_model_len=96,
        max_num_seqs=3,
        num_gpu_blocks_override=40,
        pipeline_parallel_size=2,
        distributed_executor_backend="ray",
        use_tqdm_on_load=False,
        **options,
    ).create_engine_config()


def executor_of(config: Any) -> DistributedExecutor:
    ranks = RayRanks(config, FaultyWorker, introduction(config))
    places = make_places(1, config.parallel.pipeline_parallel_size)
    return DistributedExecutor(config, FaultyWorker, ranks, places)


def faulty_engine(model: Path, monkeypatch: pytest.MonkeyPatch, stages: int = 2) -> LLM:
    monkeypatch.setattr(core, "make_executor", executor_of)
    return over_ray(model, 1, pipeline_parallel_size=stages)


@pytest.mark.parametrize(
    ("what", "phase"),
    [
        pytest.param("SIGSTOP", "step", marks=pytest.mark.product),
        pytest.param("SIGKILL", "loading", marks=pytest.mark.product),
        pytest.param("SIGSTOP", "warm-up", marks=pytest.mark.product),
        pytest.param("SIGKILL", "step", marks=pytest.mark.product),
        pytest.param("SIGSTOP", "loading", marks=pytest.mark.product),
        pytest.param("SIGKILL", "warm-up", marks=pytest.mark.product),
    ],
)
def test_a_fault_of_a_rank_names_it_and_its_machine(
    what: str, phase: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FAULT, fault(1, phase, what))
    said = rf"node 2 \(127\.0\.0\.\d\): rank 1 \(process \d+\) {SAID[what]}"
    with pytest.raises((ExecutorDied, EngineDeadError), match=said):
        llm = faulty_engine(model, monkeypatch)
        try:
            generate_on(llm)
        finally:
            llm.llm_engine.shutdown()


def agent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.parametrize(
    ("who", "what"),
    [
        pytest.param("actor", "SIGKILL", marks=pytest.mark.product),
        pytest.param("agent", "SIGKILL", marks=pytest.mark.product),
        pytest.param("agent", "SIGSTOP", marks=pytest.mark.product),
    ],
)
def test_a_fault_between_ray_and_a_rank_names_the_machine(
    who: str, what: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = over_ray(model, 1, pipeline_parallel_size=2)
    executor = llm.llm_engine.client.core.executor
    wait_until(lambda: all(state.pid for state in executor.ranks.states(0.0)), "signs of life")
    agent = agent_of(executor.ranks.states(0.0)[1].pid)
    victim = agent if who == "agent" else agent_of(agent)
    try:
        assert_ends(
            llm, partial(os.kill, victim, signal.Signals[what]), r"node 2 \(127\.0\.0\.\d\)"
        )
    finally:
        if what == "SIGSTOP":
            os.kill(victim, signal.SIGKILL)


@pytest.mark.parametrize("what", ["SIGKILL", pytest.param("SIGSTOP", marks=pytest.mark.product)])
def test_a_raylet_that_is_gone_names_its_machine(
    what: str, cluster: RayCluster, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = cluster.add()
    llm = over_ray(model, 1, pipeline_parallel_size=3)
    raylet = cluster.raylet(address)
    try:
        said = rf"node \d \({re.escape(address)}\)"
        assert_ends(llm, partial(os.kill, raylet, signal.Signals[what]), said)
    finally:
        with suppress(ProcessLookupError):
            os.kill(raylet, signal.SIGKILL)


def assert_ends(llm: LLM, hurt: Callable[[], None], said: str) -> None:
    timer = threading.Timer(0.3, hurt)
    timer.start()
    began_s = time.monotonic()
    try:
        with pytest.raises(EngineDeadError, match=said) as caught:
            generate_on(llm)
        print(f"after {time.monotonic() - began_s:.1f} s: {caught.value}", file=sys.stderr)
    finally:
        timer.join()
        llm.llm_engine.shutdown()


@pytest.mark.product
@pytest.mark.parametrize("phase", ["loading", "warm-up"])
@pytest.mark.parametrize("what", ["SIGKILL", "SIGSTOP"])
def test_a_raylet_that_is_gone_while_ranks_start_names_its_machine(
    what: str, phase: str, model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    met = tmp_path / "met"
    monkeypatch.setenv(FAULT, fault(1, phase, "hang"))
    monkeypatch.setenv(MET, str(met))
    made: list[DistributedExecutor] = []
    monkeypatch.setattr(core, "make_executor", lambda config: keep(made, executor_of(config)))
    cluster = RayCluster()
    hurt: list[int] = []

    def wait_and_hurt() -> None:
        wait_until(met.exists, "the phase")
        hurt.append(cluster.raylet(made[0].ranks.addresses[1]))
        os.kill(hurt[0], signal.Signals[what])

    thread = threading.Thread(target=wait_and_hurt)
    try:
        for _ in range(2):
            cluster.add()
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        thread.start()
        said = r"node \d \(127\.0\.0\.\d\) is lost.*rank 1 was "
        with pytest.raises(ExecutorDied, match=said):
            over_ray(model, 1, pipeline_parallel_size=2)
        thread.join()
    finally:
        for pid in hurt:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        cluster.stop()


def keep(made: list[DistributedExecutor], executor: DistributedExecutor) -> DistributedExecutor:
    made.append(executor)
    return executor


@pytest.mark.product
@pytest.mark.parametrize("budget", [16, 512])
@pytest.mark.parametrize(("ranks", "depth"), [(1, 2), (1, 4), (2, 1), (2, 2), (2, 4)])
def test_every_way_of_running_writes_the_same_tokens(
    ranks: int, budget: int, depth: int, model: Path, expected: list[list[int]]
) -> None:
    """With prompts cut and whole; two stages need as many steps in flight."""
    options = {"max_num_batched_tokens": budget, "pipeline_depth": depth}
    assert run(over_ray(model, ranks, pipeline_parallel_size=2 // ranks, **options)) == expected


@pytest.mark.product
def test_engines_of_one_program_share_its_place_in_the_cluster(
    model: Path, expected: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And one more finds nothing left."""
    first, second = (over_ray(model, 1) for _ in range(2))
    monkeypatch.setenv("VLLM_ENGINE_READY_TIMEOUT_S", "3")
    with pytest.raises(ConfigError, match=r"Ray did not provide within 3 s .* 1 bundles of 2 CPU"):
        over_ray(model, 1)
    assert run(first) == expected
    assert run(second) == expected, "the end of the first leaves the second its ranks"
