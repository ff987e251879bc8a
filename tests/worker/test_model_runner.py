from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.worker.driver import (
    MAX_MODEL_LEN,
    Driver,
    Sequence_,
    checkpoint,
    make_config,
)
from vllm.distributed.place import ALONE, make_places
from vllm.executor.base import Executor, StepHandle
from vllm.executor.distributed import DistributedExecutor
from vllm.executor.in_process import InlineExecutor, ThreadedExecutor
from vllm.executor.local_ranks import LocalRanks
from vllm.messages.cache import KVCacheLayout
from vllm.messages.facts import WorkerFacts
from vllm.messages.step import LogprobArrays, StepPlan
from vllm.sampling_params import SamplingParams
from vllm.worker.slots import DUMMY_SLOT
from vllm.worker.worker import Worker

pytestmark = pytest.mark.engine

PROMPT_LENGTHS = (1, 2, 7, 8, 9, 16, 31, 40)
NUM_TOKENS = 12


def prompts() -> list[list[int]]:
    generator = np.random.default_rng(5)
    return [generator.integers(5, 120, size=n).tolist() for n in PROMPT_LENGTHS]


def greedy(**params: object) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True, **params)  # type: ignore[arg-type]


def seeded(seed: int) -> SamplingParams:
    return SamplingParams(
        temperature=1.3,
        top_p=0.9,
        seed=seed,
        max_tokens=NUM_TOKENS,
        presence_penalty=0.5,
    )


@cache
def reference(path: Path) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    return model.eval()


@torch.inference_mode()
def reference_tokens(
    path: Path, prompt: list[int], given: Mapping[int, int] | None = None
) -> list[int]:
    """What the model draws; after a token of `given`, by position, it goes on from that."""
    tokens, drawn = list(prompt), []
    for _ in range(NUM_TOKENS):
        drawn.append(int(reference(path)(torch.tensor([tokens])).logits[0, -1].argmax()))
        tokens.append((given or {}).get(len(tokens), drawn[-1]))
    return drawn


@torch.inference_mode()
def reference_logprobs(path: Path, tokens: list[int]) -> torch.Tensor:
    """[len(tokens), V]: row p are the log-probabilities of the token at p + 1."""
    return reference(path)(torch.tensor([tokens])).logits[0].float().log_softmax(-1)


def run(
    executor: Executor,
    params: list[SamplingParams],
    depth: int = 1,
    chunk: int = MAX_MODEL_LEN,
) -> list[Sequence_]:
    try:
        return Driver(executor, depth, chunk).run(list(zip(prompts(), params, strict=True)))
    finally:
        executor.stop()


def inline(architecture: str = "llama", depth: int = 1) -> InlineExecutor:
    return InlineExecutor(make_config(checkpoint(architecture), depth), Worker)


@pytest.mark.parametrize("chunk", [MAX_MODEL_LEN, 5], ids=["whole-prompts", "chunks"])
@pytest.mark.parametrize("architecture", ["llama", "gemma2", "deepseek_v3"])
def test_greedy_tokens_of_a_mixed_batch_are_those_of_transformers(
    architecture: str, chunk: int
) -> None:
    done = run(inline(architecture), [greedy()] * len(PROMPT_LENGTHS), chunk=chunk)
    expected = [reference_tokens(checkpoint(architecture), prompt) for prompt in prompts()]
    assert [s.tokens for s in done] == expected


def mixed_params() -> list[SamplingParams]:
    return [greedy() if i % 2 else seeded(100 + i) for i in range(len(PROMPT_LENGTHS))]


@cache
def expected_mixed() -> list[list[int]]:
    return [s.tokens for s in run(inline(), mixed_params())]


EVERY = [
    (kind, depth, chunk)
    for kind in ("inline", "threaded")
    for depth in (1, 2, 4)
    for chunk in (5, 96)
]


@pytest.mark.parametrize(
    ("kind", "depth", "chunk"), [*EVERY, ("processes", 1, 5), ("processes", 2, 5)]
)
def test_tokens_do_not_depend_on_executor_depth_or_chunks(
    kind: str, depth: int, chunk: int
) -> None:
    config = make_config(checkpoint("llama"), depth)
    executor: Executor
    if kind == "processes":
        executor = DistributedExecutor(config, Worker, LocalRanks(), make_places(1))
    else:
        executor = (InlineExecutor if kind == "inline" else ThreadedExecutor)(config, Worker)
    assert [s.tokens for s in run(executor, mixed_params(), depth, chunk)] == expected_mixed()


def given_tokens() -> list[dict[int, int]]:
    """By request, none for one of them: the first drawn token, two in a row, and a late one."""
    after = (0, 3, 4, 9)
    return [
        {len(prompt) + n: 5 + 7 * i + n for n in after} if i != 2 else {}
        for i, prompt in enumerate(prompts())
    ]


@cache
def expected_given() -> list[list[int]]:
    pairs = zip(prompts(), given_tokens(), strict=True)
    return [reference_tokens(checkpoint("llama"), *pair) for pair in pairs]


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("kind", [InlineExecutor, ThreadedExecutor])
def test_given_tokens_replace_drawn_ones_also_of_steps_in_flight(
    kind: type[InlineExecutor | ThreadedExecutor], depth: int
) -> None:
    executor = kind(make_config(checkpoint("llama"), depth), Worker)
    requests = [(prompt, greedy()) for prompt in prompts()]
    done = Driver(executor, depth).run(requests, given_tokens())
    executor.stop()
    assert [s.tokens for s in done] == expected_given()
    freely = [reference_tokens(checkpoint("llama"), prompt) for prompt in prompts()]
    same = [some == others for some, others in zip(expected_given(), freely, strict=True)]
    assert same == [i == 2 for i in range(len(same))], "the given tokens change what follows"


def check_logprobs(values: LogprobArrays, row: int, wanted: torch.Tensor, token: int) -> None:
    """`values[row]` against the reference's whole distribution at that position."""
    columns = values.token_ids[row]
    np.testing.assert_allclose(values.logprobs[row], wanted[columns].numpy(), atol=1e-3)
    assert columns[0] == token
    np.testing.assert_array_equal(columns[1:], wanted.topk(len(columns) - 1).indices.numpy())
    assert values.ranks[row] == int((wanted > wanted[token]).sum()) + 1


@pytest.mark.parametrize("chunk", [MAX_MODEL_LEN, 7], ids=["whole-prompts", "chunks"])
def test_prompt_logprobs_cover_every_position_from_one_once(chunk: int) -> None:
    params = [greedy(prompt_logprobs=3) if i != 4 else greedy() for i in range(len(PROMPT_LENGTHS))]
    for i, s in enumerate(run(inline(), params, chunk=chunk)):
        if i == 4 or len(s.prompt) == 1:
            assert s.prompt_logprobs == {}
            continue
        wanted = reference_logprobs(checkpoint("llama"), s.prompt)
        covered = []
        for start, values in s.prompt_logprobs.items():
            for row in range(len(values.ranks)):
                covered.append(start + row)
                check_logprobs(values, row, wanted[start + row - 1], s.prompt[start + row])
        assert covered == list(range(1, len(s.prompt)))


def test_sampled_logprobs_are_those_of_the_drawn_token_and_the_best() -> None:
    params = [greedy(logprobs=2) if i % 2 else greedy() for i in range(len(PROMPT_LENGTHS))]
    for i, s in enumerate(run(inline(), params)):
        assert len(s.logprobs) == (NUM_TOKENS if i % 2 else 0)
        wanted = reference_logprobs(checkpoint("llama"), s.prompt + s.tokens)
        for at, values in enumerate(s.logprobs):
            one = LogprobArrays(values.token_ids[None], values.logprobs[None], values.ranks[None])
            check_logprobs(one, 0, wanted[len(s.prompt) + at - 1], s.tokens[at])


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("vllm.worker.ends.draw_tokens._LOGITS_PER_PIECE", 1)
    yield


def test_prompt_logprobs_in_pieces_equal_those_in_one(small_pieces: None) -> None:
    (in_pieces,) = Driver(inline(), 1).run([(prompts()[-1], greedy(prompt_logprobs=2))])
    wanted = reference_logprobs(checkpoint("llama"), in_pieces.prompt)
    values = in_pieces.prompt_logprobs[1]
    assert len(values.ranks) == len(in_pieces.prompt) - 1
    for row in range(len(values.ranks)):
        check_logprobs(values, row, wanted[row], in_pieces.prompt[row + 1])


def test_a_slot_serves_one_request_after_another_without_a_trace() -> None:
    driver = Driver(inline(), 1)
    first = driver.run([(p, seeded(i)) for i, p in enumerate(prompts())])
    again = driver.run([(p, greedy()) for p in reversed(prompts())])
    expected = [reference_tokens(checkpoint("llama"), p) for p in reversed(prompts())]
    assert [s.tokens for s in again] == expected
    assert all(len(s.tokens) == NUM_TOKENS for s in first)


def test_facts_name_the_layers_in_order_and_measure_memory() -> None:
    executor = inline()
    (facts,) = executor.start()
    assert list(facts.kv_specs) == sorted(facts.kv_specs) and len(facts.kv_specs) == 3
    parameters = sum(p.nbytes for p in reference(checkpoint("llama")).parameters())
    assert parameters <= facts.weight_bytes < 2 * parameters
    hidden_bytes = 128 * 64 * 4
    assert 4 * hidden_bytes < facts.activation_bytes < 400 * hidden_bytes
    assert 0 < facts.free_bytes <= facts.total_bytes
    executor.stop()


def test_the_model_can_be_reached_in_process_only() -> None:
    executor = inline()
    executor.start()
    assert executor.call("apply_model", lambda model: type(model).__name__) == ["Llama"]
    assert executor.call("ping") == [0]


class TwoWorkers(InlineExecutor):
    """Runs a second worker beside the driver, which stands where no values are asked for."""

    def start(self) -> list[WorkerFacts]:
        self.silent = Worker(self._config, ALONE)
        self.silent.load()
        self.silent.place = make_places(2)[1]
        return super().start()

    def bind_kv_cache(self, layout: KVCacheLayout) -> None:
        super().bind_kv_cache(layout)
        self.silent.bind_kv_cache(layout)
        self.silent.device.download = None  # type: ignore[assignment, method-assign]

    def submit(self, plan: StepPlan) -> StepHandle:
        step = super().submit(plan)
        assert self.silent.execute(plan).result() is None
        return step

    def tokens(self) -> list[torch.Tensor]:
        """[slots, max_tokens] of both, without the dummy slot, which holds anything."""
        workers = (self._worker, self.silent)
        return [worker.runner.slots.tokens[DUMMY_SLOT + 1 :] for worker in workers]


def test_a_rank_that_is_not_the_driver_draws_the_same_tokens_and_downloads_nothing() -> None:
    executor = TwoWorkers(make_config(checkpoint("llama")), Worker)
    params = [
        SamplingParams(
            temperature=1.0, seed=i, max_tokens=NUM_TOKENS, logprobs=2, prompt_logprobs=2
        )
        for i in range(len(PROMPT_LENGTHS))
    ]
    driver = Driver(executor, depth=1, chunk=5)
    done = driver.run(list(zip(prompts(), params, strict=True)))
    assert all(len(s.tokens) == len(s.logprobs) == NUM_TOKENS for s in done)
    assert any(s.prompt_logprobs for s in done)
    drivers, silents = executor.tokens()
    assert torch.equal(drivers, silents)
    executor.stop()
    executor.silent.close()
