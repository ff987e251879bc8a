"""A whole engine over ranks that share a model: threads here, with what one rank computes."""

from __future__ import annotations

import os

import pytest

from tests.executor.thread_ranks import ThreadRanks
from tests.models.ranks import InThread, Meeting
from tests.ops.overrides import isas
from tools.tiny_models import random_checkpoint
from vllm import LLM, SamplingParams
from vllm.config.vllm import VllmConfig
from vllm.device.collectives import Collectives
from vllm.distributed.place import Place, make_places
from vllm.executor.distributed import DistributedExecutor
from vllm.platforms.cpu import CpuPlatform
from vllm.platforms.cpu.collectives import SharedMemory
from vllm.worker.worker import Worker

BUILT = pytest.mark.skipif(not isas(), reason="the kernels were not built")
PROMPTS = [[7, 11, 5], [100, 3, 44, 9, 250, 17, 30], list(range(3, 60)), [9]]


def outputs_of(llm: LLM) -> list[tuple[list[int], str]]:
    greedy = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
    drawn = SamplingParams(temperature=0.8, top_p=0.9, seed=3, max_tokens=20, logprobs=2)
    found = []
    for params in (greedy, drawn):
        prompts = [{"prompt_token_ids": prompt} for prompt in PROMPTS]
        found += [o.outputs[0] for o in llm.generate(prompts, params, use_tqdm=False)]
    return [(list(output.token_ids), str(output.finish_reason)) for output in found]


@pytest.mark.engine
@pytest.mark.parametrize("native", [False, pytest.param(True, marks=BUILT)])
@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize(
    ("arch", "size", "blocks"), [("llama", 2, 8), ("gemma2", 2, 14), ("mixtral", 4, 8)]
)
def test_tokens_are_those_of_one_rank(arch, size, blocks, depth, native, tmp_path, monkeypatch):
    path = random_checkpoint.make(arch, tmp_path / arch)
    # Few blocks, so that requests are preempted, and chunks of prompts.
    options = {
        "dtype": "float32",
        "max_model_len": 96,
        "max_num_seqs": 3,
        "max_num_batched_tokens": 32,
        "num_gpu_blocks_override": blocks,
        "pipeline_depth": depth,
        "skip_tokenizer_init": True,
        "use_tqdm_on_load": False,
    }
    expected = outputs_of(LLM(str(path), **options))

    meeting = Meeting(size)

    memory = os.memfd_create("ranks")

    def collectives(_: CpuPlatform, config: VllmConfig, place: Place) -> Collectives:
        if native:
            return SharedMemory(place.tp, f"/proc/{os.getpid()}/fd/{memory}")
        return InThread(place.tp.rank, meeting)

    def make_executor(config) -> DistributedExecutor:
        return DistributedExecutor(config, Worker, ThreadRanks(), make_places(size))

    monkeypatch.setattr(CpuPlatform, "collectives", collectives)
    monkeypatch.setattr("vllm.engine.core.make_executor", make_executor)
    llm = LLM(str(path), **options)
    try:
        assert outputs_of(llm) == expected
        assert llm.llm_engine.client.core.scheduler.snapshot().num_preemptions > 0
        llm.llm_engine.client.core.check_integrity()
    finally:
        llm.llm_engine.shutdown()
        os.close(memory)
