"""Copies of a model that share its experts write what one copy writes; processes of their own."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine_e2e.test_tensor_parallel import engine, outputs_of
from tests.limits import is_running, until
from tools.tiny_models import random_checkpoint
from vllm import AsyncEngineArgs, SamplingParams
from vllm.engine.async_llm import AsyncLLM
from vllm.engine.own_replicas import OwnReplicas
from vllm.inputs import TokensPrompt

pytestmark = pytest.mark.engine

COPIES: dict[str, Any] = {"data_parallel_size": 2, "enable_expert_parallel": True}
MIXTURES = ("mixtral", "qwen3_moe", "deepseek_v3")
# Of every copy: two whole prompts and a bit.
SCARCE = {"num_gpu_blocks_override": 10, "block_size": 16}


def products() -> Iterator[Any]:
    """(architecture, ranks of a copy, options)"""
    ways = itertools.product((1, 2, 4), (True, False), ({}, SCARCE))
    for arch, ranks, (depth, caching, room) in itertools.product(MIXTURES, (1, 2), ways):
        options = {"pipeline_depth": depth, "enable_prefix_caching": caching, **room}
        name = f"{arch}, {ranks} ranks, depth {depth}, {'cache' if caching else 'no cache'}"
        name += ", scarce" if room else ""
        yield pytest.param(arch, ranks, options, id=name, marks=pytest.mark.product)
    for arch in MIXTURES:
        stages = {"pipeline_parallel_size": 2}
        yield pytest.param(arch, 1, stages, id=f"{arch}, 2 stages", marks=pytest.mark.product)
    dealt = {"expert_placement_strategy": "round_robin"}
    yield pytest.param("deepseek_v3", 2, dealt, id="dealt", marks=pytest.mark.product)


@pytest.mark.parametrize(
    ("arch", "ranks", "options"),
    [
        pytest.param("qwen3_moe", 1, {"pipeline_depth": 2}, id="qwen3_moe"),
        pytest.param(
            "deepseek_v3", 2, {"pipeline_depth": 1, **SCARCE}, id="deepseek_v3, 2 x 2 ranks, scarce"
        ),
        *products(),
    ],
)
def test_tokens_are_those_of_one_rank(
    arch: str, ranks: int, options: dict[str, Any], tmp_path: Path
) -> None:
    path = random_checkpoint.make(arch, tmp_path / arch)
    outputs = []
    for how in ({}, {"tensor_parallel_size": ranks, **COPIES, **options}):
        llm = engine(path, 1, **how)
        try:
            outputs.append(outputs_of(llm))
        finally:
            llm.llm_engine.shutdown()
    assert outputs[0] == outputs[1]


async def answers(llm: AsyncLLM, number: int, rank: int | None, count: int) -> list[str]:
    """How so many requests of `number` tokens end, one after the other."""
    ends = []
    for i in range(count):
        params = SamplingParams(temperature=0, max_tokens=number, ignore_eos=True)
        prompt = TokensPrompt(prompt_token_ids=[3 + i, 7, 9])
        stream = llm.generate(prompt, params, f"{id(params)}", data_parallel_rank=rank)
        last = [output async for output in stream][-1].outputs[0]
        ends.append(str(last.stop_reason) if last.finish_reason == "error" else "length")
    return ends


async def test_a_copy_without_work_serves_the_other_and_they_end_together(tmp_path: Path) -> None:
    """One copy alone has requests; then it is killed, and both start again."""
    path = random_checkpoint.make("mixtral", tmp_path / "mixtral")
    args = AsyncEngineArgs(
        str(path),
        skip_tokenizer_init=True,
        dtype="float32",
        max_model_len=512,
        num_gpu_blocks_override=64,
        **COPIES,
    )
    llm = AsyncLLM.from_engine_args(args)
    try:
        client = llm.client
        assert isinstance(client, OwnReplicas)
        for rank in (0, 1):
            assert await answers(llm, 20, rank, 3) == ["length"] * 3
        before = client.pids
        both = [asyncio.create_task(answers(llm, 500, rank, 1)) for rank in (0, 1)]
        await until(lambda: len(client._owners) == 2)
        os.kill(before[1], signal.SIGKILL)
        ended = [end for ends in await asyncio.gather(*both) for end in ends]
        assert "engine core 1, with which it shares experts, ended" in ended[0]
        assert "was killed by SIGKILL" in ended[1]
        await until(lambda: not {*before} & {*client.pids})
        assert await answers(llm, 20, None, 4) == ["length"] * 4
        assert not any(is_running(pid) for pid in before)
        await llm.call("check_integrity")
    finally:
        llm.shutdown()


@pytest.mark.product
@pytest.mark.parametrize("name", ["allgather_reducescatter", "deepep_high_throughput"])
def test_tokens_are_those_of_one_engine_whichever_way_they_travel(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = random_checkpoint.make("qwen3_moe", tmp_path / "model")
    monkeypatch.setenv("VLLM_ALL2ALL_BACKEND", name)
    found = []
    for options in ({}, COPIES):
        llm = engine(path, 1, **options)
        try:
            found.append(outputs_of(llm))
        finally:
            llm.llm_engine.shutdown()
    assert found[0] == found[1]
