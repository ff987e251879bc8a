"""Copies that share experts, in several programs, behind several servers or on several machines."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.engine_e2e.test_nodes import ROOT, SHARED, Node1, run, words_of
from tests.engine_e2e.test_spread_experts import MIXTURES, SCARCE, answers
from tests.engine_e2e.test_tensor_parallel import engine
from tests.limits import HANG_S, is_running, until
from tools.tiny_models import random_checkpoint
from vllm import AsyncEngineArgs
from vllm.engine.async_llm import AsyncLLM
from vllm.engine.own_replicas import OwnReplicas
from vllm.utils.network_utils import get_open_port

pytestmark = pytest.mark.engine

EXPERTS: dict[str, Any] = {"enable_expert_parallel": True}


@contextmanager
def program(what: str, options: Mapping[str, Any], **variables: str) -> Iterator[Any]:
    """One of several; see tests.engine_e2e.node."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.engine_e2e.node", what, json.dumps(options)],
        cwd=ROOT,
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def said(process: Any) -> dict[str, Any]:
    """The last line that a program prints."""
    printed, log = process.communicate(timeout=HANG_S)
    lines = printed.splitlines()
    assert lines, log[-4000:]
    result: dict[str, Any] = json.loads(lines[-1])
    assert "error" not in result, log[-4000:]
    return result


def numbered(size: int) -> list[dict[str, str]]:
    """The variables of each of so many programs."""
    shared = {"VLLM_DP_SIZE": str(size), "VLLM_DP_MASTER_PORT": str(get_open_port())}
    return [{**shared, "VLLM_DP_RANK": str(rank)} for rank in range(size)]


PROGRAMS = [
    pytest.param("mixtral", 2, {"pipeline_depth": 2}, id="mixtral"),
    *(
        pytest.param(arch, size, options, id=f"{arch}, {size}, {name}", marks=pytest.mark.product)
        for arch in MIXTURES
        for size, name, options in (
            (2, "2 ranks, scarce", {"tensor_parallel_size": 2, **SCARCE}),
            (2, "2 stages", {"pipeline_parallel_size": 2}),
            (3, "depth 1", {"pipeline_depth": 1}),
            (2, "balanced", {"enable_eplb": True, "eplb_config": {"step_interval": 10}}),
        )
    ),
]


@pytest.mark.parametrize(("arch", "size", "options"), PROGRAMS)
def test_programs_write_what_one_rank_writes(
    arch: str, size: int, options: dict[str, Any], tmp_path: Path
) -> None:
    """The first has less to do than the others, which need it until they are done."""
    path = random_checkpoint.make(arch, tmp_path / arch)
    how = {**SHARED, "model": str(path), **EXPERTS, **options}
    with ExitStack() as all_programs:
        programs = [
            all_programs.enter_context(program(what, how, **variables))
            for what, variables in zip(["tokens", *["twice"] * size], numbered(size), strict=False)
        ]
        found = [said(each)["tokens"] for each in programs]
    assert found == [run(engine(path, 1))] * size


@pytest.mark.product
@pytest.mark.parametrize("ranks", [1, 2])
def test_copies_whose_ranks_are_on_two_nodes_share_experts(ranks: int, tmp_path: Path) -> None:
    path = random_checkpoint.make("qwen3_moe", tmp_path / "model")
    port = get_open_port()
    shared = {**EXPERTS, "data_parallel_size": 2, "data_parallel_rpc_port": port}
    layout = {"tensor_parallel_size": 2, "pipeline_parallel_size": ranks}
    with ExitStack() as all_programs:
        programs = []
        for copy in (0, 1):
            options = {**shared, **layout, "data_parallel_rank": copy}
            node_1 = Node1(path, **options)
            all_programs.callback(node_1.process.kill)
            options |= {**SHARED, "model": str(path)}
            options |= {"nnodes": 2, "master_port": node_1.port}
            programs.append(all_programs.enter_context(program("tokens", options)))
        found = [said(each)["tokens"] for each in programs]
    assert found == [run(engine(path, 1))] * 2


def server_args(path: Path, port: int, **options: Any) -> AsyncEngineArgs:
    return AsyncEngineArgs(
        str(path),
        skip_tokenizer_init=True,
        dtype="float32",
        max_model_len=512,
        num_gpu_blocks_override=64,
        data_parallel_size=2,
        data_parallel_rpc_port=port,
        **EXPERTS,
        **options,
    )


def at_once(all_args: Iterable[AsyncEngineArgs]) -> list[AsyncLLM]:
    """Engines that start together, since they wait for each other."""
    configs = [args.create_engine_config() for args in all_args]
    clients = [OwnReplicas(config, wait=False) for config in configs]
    for client in clients:
        client.wait_until_ready()
    return [AsyncLLM(config, client) for config, client in zip(configs, clients, strict=True)]


@pytest.mark.parametrize(
    "kind",
    ["data_parallel_rank", pytest.param("data_parallel_start_rank", marks=pytest.mark.product)],
)
async def test_servers_end_and_start_their_copies_together(kind: str, tmp_path: Path) -> None:
    """Each has a copy. That of the second is killed while both have requests."""
    path = random_checkpoint.make("mixtral", tmp_path / "mixtral")
    port = get_open_port()
    hybrid = {"data_parallel_hybrid_lb": True, "data_parallel_size_local": 1}
    more = hybrid if kind == "data_parallel_start_rank" else {}
    servers = at_once(server_args(path, port, **{kind: rank}, **more) for rank in (0, 1))
    try:
        clients = [llm.client for llm in servers]
        assert all(isinstance(client, OwnReplicas) for client in clients)
        for llm in servers:  # the other one's copy has no work
            assert await answers(llm, 20, None, 3) == ["length"] * 3
        before = [client.pids[0] for client in clients]
        both = [asyncio.create_task(answers(llm, 500, None, 1)) for llm in servers]
        await until(lambda: all(client._owners for client in clients))
        os.kill(before[1], signal.SIGKILL)
        ends = [end for each in await asyncio.gather(*both) for end in each]
        assert ends[0] == (
            f"engine core 0 (process {before[0]}) ended with another one: engine core 1, with "
            "which it shares experts, ended"
        )
        assert ends[1] == f"engine core 1 (process {before[1]}) was killed by SIGKILL"
        await until(lambda: not {*before} & {client.pids[0] for client in clients})
        both = [asyncio.create_task(answers(llm, 20, None, 4)) for llm in servers]
        assert await asyncio.gather(*both) == [["length"] * 4] * 2
        assert not any(is_running(pid) for pid in before)
        for llm in servers:
            await llm.call("check_integrity")
    finally:
        for llm in servers:
            llm.shutdown()


@pytest.mark.product
async def test_copies_of_another_machine_end_and_start_with_those_of_the_server(
    tmp_path: Path,
) -> None:
    path = random_checkpoint.make("mixtral", tmp_path / "mixtral")
    port = get_open_port()
    args = server_args(path, port, data_parallel_size_local=1)
    same = ("dtype", "max_model_len", "num_gpu_blocks_override", "data_parallel_size")
    same += ("skip_tokenizer_init", "enable_expert_parallel", "data_parallel_rpc_port")
    own = {"data_parallel_start_rank": 1, "data_parallel_size_local": 1}
    words = words_of({**{name: getattr(args, name) for name in same}, **own})
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(path), "--headless"]
    agent = subprocess.Popen([*command, *words], cwd=ROOT)
    llm = AsyncLLM.from_engine_args(args)
    try:
        client = llm.client
        for rank in (0, 1):
            assert await answers(llm, 20, rank, 2) == ["length"] * 2
        for victim in (1, 0):
            before = [ready.pid for ready in client.cores]
            both = [asyncio.create_task(answers(llm, 500, rank, 1)) for rank in (0, 1)]
            await until(lambda: len(client._owners) == 2)
            os.kill(before[victim], signal.SIGKILL)
            ends = [end for each in await asyncio.gather(*both) for end in each]
            assert f"engine core {victim}" in ends[1 - victim]
            assert "with which it shares experts, ended" in ends[1 - victim]
            assert "was killed by SIGKILL" in ends[victim]
            known = {*before}
            await until(lambda known=known: not known & {ready.pid for ready in client.cores})
            assert await answers(llm, 20, 0, 2) == await answers(llm, 20, 1, 2) == ["length"] * 2
            assert not any(is_running(pid) for pid in before)
    finally:
        llm.shutdown()
        agent.wait(HANG_S)
    assert agent.returncode == 0
