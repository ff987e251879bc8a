"""Ranks in processes of their own that share a model write what one rank writes."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.limits import HANG_S, is_running, until
from tools.tiny_models import random_checkpoint
from vllm import LLM, AsyncEngineArgs, SamplingParams
from vllm.engine.async_llm import AsyncLLM
from vllm.errors import ConfigError, EngineDeadError
from vllm.sampling_params import StructuredOutputsParams

pytestmark = pytest.mark.engine

ROOT = Path(__file__).resolve().parents[2]

PROMPTS = [[7, 11, 5], [100, 3, 44, 9, 250, 17, 30], list(range(3, 60)), [9]]
PARAMS: dict[str, Callable[[], SamplingParams]] = {
    "greedy": lambda: SamplingParams(temperature=0, max_tokens=20, ignore_eos=True),
    "seeded": lambda: SamplingParams(
        temperature=0.9, top_p=0.9, top_k=40, seed=5, max_tokens=20, ignore_eos=True
    ),
    "penalties": lambda: SamplingParams(
        temperature=0, presence_penalty=1.0, repetition_penalty=1.3, max_tokens=20, ignore_eos=True
    ),
    "form": lambda: SamplingParams(
        temperature=0, structured_outputs=StructuredOutputsParams(regex="[a-z]{3,9}"), max_tokens=20
    ),
}


def engine(path: Path, ranks: int, **options: Any) -> LLM:
    return LLM(
        str(path),
        **{
            "tensor_parallel_size": ranks,
            "dtype": "float32",
            "max_model_len": 96,
            "max_num_seqs": 3,
            "max_num_batched_tokens": 32,
            "num_gpu_blocks_override": 40,
            "use_tqdm_on_load": False,
            **options,
        },
    )


def outputs_of(llm: LLM) -> list[list[int]]:
    prompts = [{"prompt_token_ids": prompt} for prompt in PROMPTS]
    found = []
    for make in PARAMS.values():
        # Twice: graphs are captured of what comes again, and prefixes are cached.
        for _ in range(2):
            found += llm.generate(prompts, make(), use_tqdm=False)
    llm.llm_engine.call("check_integrity")
    return [list(one.outputs[0].token_ids) for one in found]


def compare(path: Path, ranks: int, **options: Any) -> None:
    outputs = []
    for number in (1, ranks):
        llm = engine(path, number, **options)
        try:
            outputs.append(outputs_of(llm))
        finally:
            llm.llm_engine.shutdown()
    assert outputs[0] == outputs[1]


# What differs: fused projections and one KV head, experts, latent rows, modules of transformers.
IN_EVERY_RUN = {("gpt_bigcode", 4), ("qwen3_moe", 2), ("deepseek_v3", 2), ("olmo2", 2)}


@pytest.mark.parametrize(
    ("arch", "ranks"),
    [
        pytest.param(*case, marks=[] if case in IN_EVERY_RUN else [pytest.mark.product])
        for case in itertools.product(random_checkpoint.ARCHITECTURES, (2, 4))
    ],
)
def test_tokens_are_those_of_one_rank(arch: str, ranks: int, tmp_path: Path) -> None:
    compare(random_checkpoint.make(arch, tmp_path / arch), ranks)


@pytest.mark.parametrize(
    "options",
    [
        {"pipeline_depth": 3, "num_gpu_blocks_override": 9},
        {"enforce_eager": True, "enable_prefix_caching": False},
    ],
    ids=["deep and short of blocks", "eager"],
)
def test_in_other_ways_of_running(options: dict[str, Any], tmp_path: Path) -> None:
    compare(random_checkpoint.make("qwen3", tmp_path / "qwen3"), 2, **options)


def test_log_probabilities_are_close_and_of_the_same_tokens(tmp_path: Path) -> None:
    path = random_checkpoint.make("llama", tmp_path / "llama")
    params = SamplingParams(
        temperature=0, max_tokens=8, logprobs=3, prompt_logprobs=2, ignore_eos=True
    )
    found = []
    for ranks in (1, 2):
        llm = engine(path, ranks)
        found.append(llm.generate({"prompt_token_ids": PROMPTS[1]}, params, use_tqdm=False)[0])
        llm.llm_engine.shutdown()
    rows = [[*one.prompt_logprobs[1:], *one.outputs[0].logprobs] for one in found]
    for one, two in zip(*rows, strict=True):
        assert one.keys() == two.keys()
        assert all(abs(one[token].logprob - two[token].logprob) < 1e-4 for token in one)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_ranks_agree_with_each_other_where_sums_are_rounded(tiny_story: Path, dtype: str) -> None:
    llm = engine(tiny_story, 2, dtype=dtype)
    try:
        first = outputs_of(llm)
        assert outputs_of(llm) == first
        assert llm.collective_rpc("ping") == [0, 1]
    finally:
        llm.llm_engine.shutdown()


def test_weights_are_loaded_again_by_every_rank(tmp_path: Path) -> None:
    first = random_checkpoint.make("llama", tmp_path / "first", seed=1)
    second = random_checkpoint.make("llama", tmp_path / "second", seed=2)
    llm = engine(first, 2)
    try:
        outputs_of(llm)
        llm.collective_rpc("reload_weights", args=(str(second),))
        llm.reset_prefix_cache()
        given = outputs_of(llm)
    finally:
        llm.llm_engine.shutdown()
    fresh = engine(second, 1)
    assert given == outputs_of(fresh)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tensor_parallel_size": 3}, r"3 does not divide the .* attention heads"),
        (
            {"tensor_parallel_size": 2, "distributed_executor_backend": "uni"},
            r"uni runs one rank, and there are 2",
        ),
        (
            {"tensor_parallel_size": 4, "model_impl": "transformers"},
            r"4 does not divide the 2 KV heads .* 1, 2",
        ),
    ],
)
def test_what_cannot_be_shared_is_refused(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = random_checkpoint.make("llama", tmp_path / "llama")
    with pytest.raises(ConfigError, match=message):
        LLM(str(path), max_model_len=96, **options)


def ranks_of(core_pid: int) -> list[int]:
    """The processes that the engine core has spawned to run the model."""
    children = Path(f"/proc/{core_pid}/task/{core_pid}/children").read_text().split()
    return [int(c) for c in children if b"spawn_main" in Path(f"/proc/{c}/cmdline").read_bytes()]


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("is_busy", [False, True], ids=["idle", "in a step"])
async def test_the_death_of_a_rank_ends_the_engine_with_its_name(
    tiny_story: Path, victim: int, is_busy: bool
) -> None:
    engine = AsyncLLM.from_engine_args(
        AsyncEngineArgs(model=str(tiny_story), tensor_parallel_size=2, max_model_len=1024)
    )
    try:
        await engine.check_health()
        pids = ranks_of(engine.client.pid)
        assert len(pids) == 2
        if is_busy:
            params = SamplingParams(max_tokens=900, ignore_eos=True)
            stream = engine.generate("Once upon a time", params, "busy")
            async for _ in stream:
                break
        os.kill(pids[victim], signal.SIGKILL)
        await until(lambda: not engine.is_running, "the engine's end")
        with pytest.raises(EngineDeadError, match=f"rank {victim} .*SIGKILL"):
            await engine.check_health()
        await until(lambda: not any(map(is_running, pids)), "the ends of the ranks")
    finally:
        engine.shutdown()


def test_a_program_without_a_guard_is_told_what_to_do(tiny_story: Path, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "from vllm import LLM\n"
        f"LLM({str(tiny_story)!r}, tensor_parallel_size=2, max_model_len=64)\n"
    )
    done = subprocess.run(
        [sys.executable, str(program)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    assert done.returncode == 1
    assert "ConfigError: this program starts an engine when it is imported" in done.stderr
    assert "bootstrapping" not in done.stderr, "what multiprocessing says is long and of no use"


def test_every_line_of_a_rank_says_whose_it_is_and_one_shows_progress(
    tiny_story: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    llm = engine(tiny_story, 2, use_tqdm_on_load=True)
    llm.llm_engine.shutdown()
    said = capfd.readouterr().err
    for rank in range(2):
        assert f"(rank {rank}) INFO" in said
    assert said.count("Loading weights: 100%") <= 1
