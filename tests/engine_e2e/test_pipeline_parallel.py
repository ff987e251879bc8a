"""Stages of a pipeline, and ranks that share each, write what one rank writes."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.engine_e2e.plain_worker import plain_executor
from tests.engine_e2e.test_tensor_parallel import PROMPTS, engine, outputs_of
from tests.platforms.hpu import features
from tools.tiny_models import random_checkpoint
from vllm import LLM, SamplingParams
from vllm.distributed.stages import PARTITION
from vllm.errors import ConfigError

pytestmark = pytest.mark.engine

Rows = list[Mapping[int, Any]]
# Ranks per stage, and stages.
LAYOUTS = ((1, 2), (1, 3), (2, 2))
# Interleaved layers with two groups of caches and a tied head; modules of transformers.
IN_EVERY_RUN = {("gemma2", (1, 2)), ("olmo2", (1, 2))}


def stages(number: int, depth: int | None = None, **options: Any) -> dict[str, Any]:
    return {"pipeline_parallel_size": number, "pipeline_depth": depth, **options}


def compare_stages(path: Path, ranks: int = 1, **options: Any) -> None:
    """Tokens of `ranks` per stage are those of one rank that runs as usual, to the bit."""
    expected = _outputs(path, 1)
    assert _outputs(path, ranks, **options) == expected


def _outputs(path: Path, ranks: int, **options: Any) -> list[list[int]]:
    llm = engine(path, ranks, **options)
    try:
        return outputs_of(llm)
    finally:
        llm.llm_engine.shutdown()


@pytest.mark.parametrize(
    ("arch", "layout"),
    [
        pytest.param(*case, marks=[] if case in IN_EVERY_RUN else [pytest.mark.product])
        for case in itertools.product(random_checkpoint.ARCHITECTURES, LAYOUTS)
    ],
)
def test_tokens_are_those_of_one_rank(arch: str, layout: tuple[int, int], tmp_path: Path) -> None:
    ranks, number = layout
    compare_stages(random_checkpoint.make(arch, tmp_path / arch), ranks, **stages(number))


# (ranks per stage, stages, depth, tokens per step, of a piece of a prompt, prefix cache, blocks).
# Of every two settings many values meet.
PAIRS = {
    (1, 2, 2, 16, 64, True, 9),
    (1, 3, 4, 96, 4, False, 9),
    (2, 2, 3, 32, 4, True, 40),
}


def ways() -> Iterator[Any]:
    layouts = [
        *((1, 2, depth) for depth in (2, 3, 4)),
        *((1, 3, depth) for depth in (3, 4)),
        *((2, 2, depth) for depth in (2, 3, 4)),
    ]
    tokens = ((16, 64), (32, 4), (96, 4), (96, 64))  # of a step, and of a piece
    for layout, some, *rest in itertools.product(layouts, tokens, (True, False), (9, 40)):
        way = (*layout, *some, *rest)
        yield pytest.param(*way, marks=[] if way in PAIRS else [pytest.mark.product])


@pytest.mark.parametrize(
    ("ranks", "number", "depth", "tokens", "piece", "caches", "blocks"), [*ways()]
)
def test_in_every_way_of_running(
    ranks: int,
    number: int,
    depth: int,
    tokens: int,
    piece: int,
    caches: bool,
    blocks: int,
    tmp_path: Path,
) -> None:
    compare_stages(
        random_checkpoint.make("qwen3", tmp_path / "qwen3"),
        ranks,
        max_num_batched_tokens=tokens,
        pipeline_chunk_tokens=piece,
        enable_prefix_caching=caches,
        num_gpu_blocks_override=blocks,
        **stages(number, depth),
    )


@pytest.mark.parametrize(
    ("how", "layout"),
    [
        pytest.param(
            *case, marks=[] if case == ("depth 3, short of blocks", (1, 2)) else pytest.mark.product
        )
        for case in itertools.product(features.ENGINES, LAYOUTS)
    ],
)
def test_whatever_a_request_wants_it_gets(how: str, layout: tuple[int, int]) -> None:
    ranks, number = layout
    options = features.ENGINES[how]
    depth = max(number, options.get("pipeline_depth", number))
    expected = features.answers("cpu", options, functions=False)
    given = features.answers(
        "cpu",
        # Prompts are cut into pieces that stages compute at the same time.
        {
            **options,
            **stages(number, depth, tensor_parallel_size=ranks, pipeline_chunk_tokens=8),
        },
        functions=False,
    )
    assert len(given) > 15
    for want, outputs in given.items():
        for one, two in zip(outputs, expected[want], strict=True):
            assert not features.difference(one, two), want


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float16", marks=pytest.mark.product)])
def test_stages_round_as_one_rank_does(dtype: str, tiny_story: Path) -> None:
    found = [_outputs(tiny_story, 1, dtype=dtype, **options) for options in ({}, stages(3))]
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("ranks", "number"), [(1, 3), pytest.param(2, 2, marks=pytest.mark.product)]
)
def test_log_probabilities_are_those_of_one_rank(ranks: int, number: int, tmp_path: Path) -> None:
    path = random_checkpoint.make("llama", tmp_path / "llama")
    params = [
        SamplingParams(
            temperature=0.8, seed=5, max_tokens=12, logprobs=3, prompt_logprobs=2, ignore_eos=True
        ),
        SamplingParams(temperature=0, max_tokens=12, logprobs=0, ignore_eos=True),
        SamplingParams(temperature=0, max_tokens=12, prompt_logprobs=0, ignore_eos=True),
        SamplingParams(temperature=1.2, seed=7, max_tokens=3, logprobs=5),
    ]
    prompts = [{"prompt_token_ids": prompt} for prompt in PROMPTS]
    found: list[Rows] = []
    for options in ({"tensor_parallel_size": 1}, stages(number, tensor_parallel_size=ranks)):
        # Prompts of 57 tokens are computed in four chunks.
        llm = engine(path, 1, max_num_batched_tokens=16, **options)
        rows: Rows = []
        for one in llm.generate(prompts, params, use_tqdm=False):
            rows += (one.prompt_logprobs or [])[1:]
            rows += one.outputs[0].logprobs or []
        llm.llm_engine.shutdown()
        found.append(rows)
    assert len(found[0]) == (2 + 12) + 12 + 56 + 3
    for expected, given in zip(*found, strict=True):
        assert expected.keys() == given.keys()
        for token, entry in expected.items():
            assert abs(entry.logprob - given[token].logprob) < (1e-4 if ranks > 1 else 1e-6)
            assert ranks > 1 or entry.rank == given[token].rank


def test_requests_of_other_priorities_write_the_same(tiny_story: Path) -> None:
    """Four times as many as run at a time, with other lengths; some are preempted."""
    dice = random.Random(4)
    prompts = [
        {"prompt_token_ids": [dice.randrange(3, 500) for _ in range(dice.randrange(1, 40))]}
        for _ in range(12)
    ]
    params = [
        SamplingParams(temperature=0.7, seed=i, max_tokens=dice.randrange(20, 50), ignore_eos=True)
        for i in range(len(prompts))
    ]
    priority = [dice.randrange(3) for _ in prompts]
    found = []
    for options in ({}, stages(2)):
        llm = engine(
            tiny_story, 1, scheduling_policy="priority", num_gpu_blocks_override=9, **options
        )
        outputs = llm.generate(prompts, params, use_tqdm=False, priority=priority)
        core = llm.llm_engine.client.core
        core.check_integrity()
        assert core.scheduler.snapshot().num_preemptions > 0
        llm.llm_engine.shutdown()
        found.append([list(one.outputs[0].token_ids) for one in outputs])
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("ranks", "arch"),
    [
        (2, "llama"),
        pytest.param(1, "gemma2", marks=pytest.mark.product),
        pytest.param(2, "olmo2", marks=pytest.mark.product),
    ],
)
def test_without_kernels_ranks_and_stages_meet_over_gloo(
    ranks: int, arch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = random_checkpoint.make(arch, tmp_path / arch)
    monkeypatch.setattr("vllm.engine.core.make_executor", plain_executor)
    expected = _outputs(path, 1)
    assert _outputs(path, ranks, **stages(2)) == expected


@pytest.mark.parametrize(
    "model_impl", ["vllm", pytest.param("transformers", marks=pytest.mark.product)]
)
def test_weights_are_loaded_again_by_every_stage(model_impl: str, tmp_path: Path) -> None:
    first = random_checkpoint.make("gemma2", tmp_path / "first", seed=1)
    second = random_checkpoint.make("gemma2", tmp_path / "second", seed=2)
    llm = engine(first, 1, model_impl=model_impl, **stages(2))
    try:
        before = outputs_of(llm)
        llm.collective_rpc("reload_weights", args=(str(second),))
        llm.reset_prefix_cache()
        given = outputs_of(llm)
        assert llm.collective_rpc("ping") == [0, 1]
    finally:
        llm.llm_engine.shutdown()
    assert before != given == _outputs(second, 1, model_impl=model_impl)


def test_layers_are_spread_as_the_variable_says(
    tiny_story: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = _outputs(tiny_story, 1)
    monkeypatch.setenv(PARTITION, "3,1")
    monkeypatch.setenv("VLLM_ALLOW_INSECURE_SERIALIZATION", "1")  # or functions would not travel
    llm = engine(tiny_story, 1, **stages(2))
    try:
        assert llm.apply_model(_number_of_caches) == [3, 1]
        assert outputs_of(llm) == expected
    finally:
        llm.llm_engine.shutdown()


def _number_of_caches(model: Any) -> int:
    return len(model.attention_layers())


@pytest.mark.parametrize(
    ("arch", "options", "message"),
    [
        ("llama", stages(4), r"--pipeline-parallel-size 4: the model has 3 layers"),
        ("llama", stages(2, 1), r"--pipeline-depth 1 and --pipeline-parallel-size 2"),
        (
            "llama",
            stages(2, distributed_executor_backend="uni"),
            r"uni runs one rank, and there are 2",
        ),
        (
            "gpt_bigcode",
            stages(2, model_impl="transformers"),
            r"cannot run GPTBigCodeForCausalLM through transformers: .*\(no plan\)\. "
            r"Use --pipeline-parallel-size 1",
        ),
        pytest.param(
            "gpt_bigcode",
            stages(2, tensor_parallel_size=2, model_impl="transformers"),
            r"cannot run GPTBigCodeForCausalLM through transformers: .*\(no plan\)",
            marks=pytest.mark.product,
        ),
        pytest.param(
            "llama",
            stages(2, tensor_parallel_size=3),
            r"3 does not divide the 4 attention heads.*one of 1, 2, 4\.",
            marks=pytest.mark.product,
        ),
    ],
)
def test_what_cannot_be_cut_is_refused(
    arch: str, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = random_checkpoint.make(arch, tmp_path / arch)
    with pytest.raises(ConfigError, match=message):
        LLM(str(path), max_model_len=96, **options)


@pytest.mark.parametrize("partition", ["1,1,1", "2,2", "3,0", "all"])
def test_layers_that_cannot_be_spread_as_the_variable_says_are_refused(
    partition: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = random_checkpoint.make("llama", tmp_path / "llama")
    monkeypatch.setenv(PARTITION, partition)
    with pytest.raises(ConfigError, match=f"{PARTITION}='{partition}'.* unset it"):
        LLM(str(path), max_model_len=96, **stages(2))
