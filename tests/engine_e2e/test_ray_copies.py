"""Copies of a model that Ray places, on a cluster of raylets of this machine."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import re
import signal
import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.engine_e2e.ray_cluster import VARIABLES, RayCluster
from tests.engine_e2e.test_rank_faults import MARK, marked
from tests.engine_e2e.test_ray import agent_of, cluster, is_free
from tests.engine_e2e.test_tensor_parallel import engine, outputs_of
from tests.limits import HANG_S, until, wait_until
from tools.tiny_models import random_checkpoint
from vllm import LLM, AsyncEngineArgs, SamplingParams
from vllm.engine import ray_copies
from vllm.engine.async_llm import AsyncLLM
from vllm.engine.own_replicas import OwnReplicas
from vllm.engine.replicas import State
from vllm.errors import ConfigError, EngineDeadError
from vllm.utils.network_utils import get_open_port

ray = pytest.importorskip("ray", reason="ray is not installed")
pytestmark = pytest.mark.engine

__all__ = ["cluster"]  # a fixture: two machines with room for a copy each


@pytest.fixture(autouse=True)
def mark(cluster: RayCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """In the environment of every process of the engine; none may be left in the end."""
    mark = uuid.uuid4().hex
    monkeypatch.setenv(MARK, mark)
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    monkeypatch.setenv("VLLM_RAY_PER_WORKER_GPUS", "2")
    monkeypatch.setenv("VLLM_RAY_EXTRA_ENV_VAR_PREFIXES_TO_COPY", "TEST_")
    yield mark
    wait_until(lambda: not marked(mark), "the end of all processes")
    assert not ray.is_initialized()
    wait_until(partial(is_free, cluster), "the return of all bundles")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_checkpoint.make("llama", tmp_path_factory.mktemp("ray") / "model")


def over_ray(count: int = 2, **options: Any) -> dict[str, Any]:
    return {
        "data_parallel_size": count,
        "data_parallel_backend": "ray",
        "data_parallel_rpc_port": get_open_port(),
        **options,
    }


def hosts_of(client: object) -> list[str]:
    """Addresses of the machines, by copy."""
    assert isinstance(client, OwnReplicas) and client._ray_copies is not None
    return [m.address for m in client._ray_copies._machines for _ in m.numbers]


def test_copies_on_two_machines_write_the_tokens_of_one_engine(
    model: Path, cluster: RayCluster
) -> None:
    llm = engine(model, 1)
    try:
        expected = outputs_of(llm)
    finally:
        llm.llm_engine.shutdown()
    llm = engine(model, 1, **over_ray())
    try:
        # The machine of the program, which is the head's, comes first.
        assert hosts_of(llm.llm_engine.client) == ["127.0.0.2", "127.0.0.3"]
        assert len({ready.pid for ready in llm.llm_engine.client.cores}) == 2
        assert outputs_of(llm) == expected
    finally:
        llm.llm_engine.shutdown()


@pytest.mark.parametrize(
    ("of_rank", "options"),
    [
        pytest.param("2", over_ray(), id="a machine each"),
        pytest.param("1", over_ray(), id="one machine", marks=pytest.mark.product),
        pytest.param(
            "1", over_ray(tensor_parallel_size=2), id="2 ranks each", marks=pytest.mark.product
        ),
        # Each rank is on a machine of its own, or beside another.
        pytest.param(
            "1",
            {
                "data_parallel_size": 2,
                "tensor_parallel_size": 2,
                "distributed_executor_backend": "ray",
            },
            id="ranks by Ray",
            marks=pytest.mark.product,
        ),
    ],
)
def test_copies_share_experts(
    of_rank: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens are those of one engine, wherever Ray has room of `of_rank` CPU for a rank."""
    monkeypatch.setenv("VLLM_RAY_PER_WORKER_GPUS", of_rank)
    path = random_checkpoint.make("mixtral", tmp_path / "mixture")
    tokens = []
    for how in ({}, {**options, "enable_expert_parallel": True}):
        llm = engine(path, 1, **how)
        try:
            tokens.append(outputs_of(llm))
        finally:
            llm.llm_engine.shutdown()
    assert tokens[0] == tokens[1]


@pytest.mark.product
def test_copies_of_one_machine_share_an_agent(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_RAY_PER_WORKER_GPUS", "1")
    llm = engine(model, 1, **over_ray(2))
    try:
        assert hosts_of(llm.llm_engine.client) == ["127.0.0.2", "127.0.0.2"]
        first, second = (ready.pid for ready in llm.llm_engine.client.cores)
        assert agent_of(first) == agent_of(second)
    finally:
        llm.llm_engine.shutdown()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            over_ray(3),
            r"The 3 copies \(--data-parallel-size\) need a bundle of 2 CPU each, and the Ray "
            "cluster of 2 nodes has room for 2",
        ),
        (
            over_ray(2, tensor_parallel_size=2),
            r"The 2 copies .* need a bundle of 4 CPU each, .* 2 nodes has room for 0",
        ),
        (
            over_ray(2, data_parallel_size_local=2),
            "--data-parallel-size-local 2: each of the 2 copies needs 2 CPU of one node, and this "
            r"machine \(127.0.0.2\) has room for 1, the others for 1",
        ),
    ],
    ids=["copies", "ranks of a copy", "copies of this machine"],
)
def test_too_little_room_is_an_error_with_both_numbers(
    options: dict[str, Any], said: str, model: Path
) -> None:
    with pytest.raises(ConfigError, match=said):
        engine(model, options.pop("tensor_parallel_size", 1), **options)


@pytest.mark.product
def test_the_user_chooses_machines(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "VLLM_RAY_DP_PLACEMENT_NODE_IPS"
    monkeypatch.setenv(name, "127.0.0.3")
    with pytest.raises(ConfigError, match="cluster of 1 nodes has room for 1"):
        engine(model, 1, **over_ray())
    monkeypatch.setenv(name, "127.0.0.3, 10.0.0.9")
    with pytest.raises(ConfigError, match=rf"{name}=.*: the Ray cluster has no node 10\.0\.0\.9"):
        engine(model, 1, **over_ray())


@pytest.mark.product
def test_room_that_others_have_taken_is_an_error(
    cluster: RayCluster, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.util.placement_group import placement_group, remove_placement_group

    monkeypatch.setenv("VLLM_ENGINE_READY_TIMEOUT_S", "3")
    ray.init(address=cluster.address, configure_logging=False, log_to_driver=False)
    try:
        group = placement_group([{"CPU": 2}])
        ray.get(group.ready(), timeout=HANG_S)
        said = r"The 2 copies .* and others have left room for 1 .* for 3 s"
        with pytest.raises(ConfigError, match=said):
            engine(model, 1, **over_ray())
        remove_placement_group(group)
    finally:
        ray.shutdown()


@pytest.mark.product
def test_a_copy_that_cannot_start_ends_the_start_with_its_reason(
    model: Path, tmp_path: Path
) -> None:
    """Its machine resolves the arguments anew; here the model has gone in between."""
    gone = random_checkpoint.make("llama", tmp_path / "model")
    config = AsyncEngineArgs(model=str(gone), **over_ray()).create_engine_config()
    gone.rename(tmp_path / "elsewhere")
    with pytest.raises(EngineDeadError, match=rf"the agent of copies \d.*{re.escape(str(gone))}"):
        OwnReplicas(config)


# -- faults ---------------------------------------------------------------------------------------

LONG = SamplingParams(temperature=0, max_tokens=80, ignore_eos=True)


def make_async(model: Path, **options: Any) -> AsyncLLM:
    args = AsyncEngineArgs(
        model=str(model), dtype="float32", max_model_len=96, num_gpu_blocks_override=400, **options
    )
    return AsyncLLM.from_engine_args(args)


async def ending(llm: AsyncLLM, number: int, rank: int) -> str:
    """How a request of a copy ends: its reason, or the error of the copy."""
    outputs = llm.generate([5, 6, number % 200], LONG, f"r{rank}-{number}", data_parallel_rank=rank)
    choice = [output async for output in outputs][-1].outputs[0]
    return str(choice.stop_reason if choice.finish_reason == "error" else choice.finish_reason)


async def endings(llm: AsyncLLM, rank: int, number: int, is_over: asyncio.Event) -> list[str]:
    """How requests of a copy end, one after the other: until one fails, or it is over."""
    found: list[str] = []
    while not is_over.is_set() and set(found) <= {"length"}:
        found.append(await ending(llm, 1000 * len(found) + number, rank))
    return found


async def check_loss(llm: AsyncLLM, victim: int) -> None:
    """The requests of copy 1 fail with SIGKILL for a process that it needs; others go on."""
    assert isinstance(llm.client, OwnReplicas)
    is_over = asyncio.Event()
    kept, lost = (
        [asyncio.create_task(endings(llm, rank, number, is_over)) for number in range(8)]
        for rank in (0, 1)
    )
    await until(lambda: len(llm.client._owners) == 16, "all requests")  # type: ignore[attr-defined]
    os.kill(victim, signal.SIGKILL)
    for ends in await asyncio.gather(*lost):
        assert re.search(r"the machine with copies 1 to 1 \(127\.0\.0\.\d\) is gone", ends[-1])
    is_over.set()
    for ends in await asyncio.gather(*kept):
        assert set(ends) == {"length"}
    assert await ending(llm, 0, 0) == "length"


async def check_return(llm: AsyncLLM) -> None:
    """Copy 1 is started again."""
    await until(lambda: llm.client._replicas[1].state is State.UP, "another life")  # type: ignore[attr-defined]
    assert await ending(llm, 0, 1) == "length"


@pytest.mark.product
async def test_copies_that_end_again_and_again_are_given_up(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And with the last ones the server ends."""
    monkeypatch.setattr(ray_copies, "MOST_STARTS", 1)
    llm = make_async(model, **over_ray())
    try:
        await llm.check_health()
        await check_loss(llm, agent_of(agent_of(llm.client.cores[1].pid)))
        await until(lambda: llm.client._replicas[1].is_given_up, "Ray's word")  # type: ignore[attr-defined]
        with pytest.raises(EngineDeadError, match="core 1 has ended, and does not start again"):
            await ending(llm, 0, 1)
        os.kill(agent_of(agent_of(llm.client.cores[0].pid)), signal.SIGKILL)
        await until(lambda: llm.errored, "the end of the engine")
    finally:
        llm.shutdown()


@pytest.mark.product
async def test_an_actor_that_is_killed_takes_the_requests_of_its_copies_only(model: Path) -> None:
    llm = make_async(model, **over_ray())
    try:
        await llm.check_health()
        await check_loss(llm, agent_of(agent_of(llm.client.cores[1].pid)))
        await check_return(llm)
    finally:
        llm.shutdown()


@pytest.mark.product
async def test_a_raylet_that_is_killed_takes_the_requests_of_its_copies_only(
    cluster: RayCluster, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_RAY_PER_WORKER_GPUS", "3")
    # Raylets are not of the engine, and outlive it.
    both = [cluster.add({MARK: "none"}, **{"num-cpus": 3}) for _ in range(2)]
    llm = make_async(model, **over_ray())
    try:
        await llm.check_health()
        assert sorted(hosts_of(llm.client)) == sorted(both)
        await check_loss(llm, cluster.raylet(hosts_of(llm.client)[1]))
        with pytest.raises(EngineDeadError, match=r"is being started again\. Try again later"):
            await ending(llm, 0, 1)
        options = {"num-cpus": 3, "node-ip-address": hosts_of(llm.client)[1]}
        cluster.add({MARK: "none"}, **options)
        await check_return(llm)
    finally:
        llm.shutdown()


def serve(model: str, options: dict[str, Any], ready: Path) -> None:
    llm = LLM(model, dtype="float32", max_model_len=96, num_gpu_blocks_override=40, **options)
    ready.touch()
    signal.pause()
    del llm


def test_a_server_that_is_killed_leaves_nothing(model: Path, mark: str, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    process = multiprocessing.get_context("spawn").Process(
        target=serve, args=(str(model), over_ray(), ready)
    )
    process.start()
    wait_until(ready.exists, "the start")
    assert len(marked(mark)) > 4, "the server, two agents and two cores"
    process.kill()
    process.join()
