"""What a request may get wrong is found before the engine core hears of it."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from vllm.config.vllm import VllmConfig
from vllm.engine.processor import Processor
from vllm.engine.tokenizer import model_tokenizer
from vllm.errors import BadRequest, NotAvailable
from vllm.inputs import parse_prompts
from vllm.sampling_params import SamplingParams


@pytest.fixture
def processor(config: VllmConfig) -> Processor:
    return Processor(config.model, model_tokenizer(config.model))


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("One day", "One day"),
        ({"prompt": "One day"}, "One day"),
        ([5, 6, 7], None),
        ((5, 6, 7), None),
        (np.array([5, 6, 7]), None),
        ({"prompt_token_ids": [5, 6, 7]}, None),
        ({"prompt_token_ids": [5, 6, 7], "prompt": "shown"}, "shown"),
    ],
)
def test_every_kind_of_prompt_becomes_token_ids(
    processor: Processor, prompt: Any, text: str | None
) -> None:
    request = processor.process("a", prompt)
    assert request.prompt == text
    expected = [5, 6, 7] if text != "One day" else processor.encode("One day")
    assert request.prompt_token_ids == expected
    assert request.children[0].prompt_token_ids == expected


def test_a_list_of_integers_is_one_prompt_and_other_lists_are_many() -> None:
    assert len(parse_prompts([1, 2, 3])) == 1
    assert len(parse_prompts(["a", [1, 2], {"prompt": "b"}])) == 3
    assert len(parse_prompts("text")) == 1
    assert parse_prompts([]) == []


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "empty"),
        ({"prompt_token_ids": []}, "empty"),
        ([-1], "token id -1, which is out of vocabulary; the model's are 0 to"),
        ([10**6], "token id 1000000"),
        (["a", "b"], "flat list of integers"),
        ([1.5], "flat list of integers"),
        (7, "got a int"),
        (None, "got a NoneType"),
        ({"text": "a"}, "no 'text'"),
        ({}, "needs 'prompt' or 'prompt_token_ids'"),
        ({"prompt": 3}, "'prompt' must be text"),
        ({"prompt": "a", "cache_salt": ""}, "cache_salt"),
        ([5] * 5000, "has 5000 tokens; this engine accepts 1023"),
        ([5] * 5000, "maximum context length is 1024 tokens"),
    ],
)
def test_a_bad_prompt_is_refused_with_its_reason(
    processor: Processor, prompt: Any, message: str
) -> None:
    with pytest.raises(BadRequest, match=message):
        processor.process("a", prompt)


@pytest.mark.parametrize("key", ["multi_modal_data", "prompt_embeds", "encoder_prompt"])
def test_prompts_of_other_modalities_are_not_available(processor: Processor, key: str) -> None:
    with pytest.raises(NotAvailable, match=key):
        processor.process("a", {"prompt": "a", key: {"image": 1}})


def test_the_longest_prompt_leaves_room_for_one_token(processor: Processor) -> None:
    request = processor.process("a", [5] * 1023, SamplingParams(max_tokens=None))
    assert request.children[0].params.max_tokens == 1


def test_max_tokens_none_means_what_fits(processor: Processor) -> None:
    assert (
        processor.process("a", [5] * 10, SamplingParams(max_tokens=None)).params.max_tokens == 1014
    )


def test_min_tokens_and_allowed_end_tokens_alone_exclude_each_other(
    processor: Processor, config: VllmConfig
) -> None:
    ends = sorted(config.model.eos_token_ids)
    params = SamplingParams(allowed_token_ids=ends, min_tokens=2)
    with pytest.raises(BadRequest, match="allowed_token_ids holds only tokens that") as caught:
        processor.process("a", [5], params)
    assert caught.value.param == "allowed_token_ids"

    stopping = SamplingParams(allowed_token_ids=[*ends, 9], stop_token_ids=[9], min_tokens=2)
    with pytest.raises(BadRequest, match="allowed_token_ids"):
        processor.process("a", [5], stopping)

    for harmless in ({"min_tokens": 0}, {"ignore_eos": True}, {"allowed_token_ids": [*ends, 9]}):
        given: dict[str, Any] = {"allowed_token_ids": ends, "min_tokens": 2, **harmless}
        processor.process("a", [5], SamplingParams(**given))


@pytest.mark.parametrize("prompt", ["", {"prompt": ""}])
def test_what_an_empty_text_becomes_is_the_tokenizers_to_say(
    processor: Processor, config: VllmConfig, prompt: Any
) -> None:
    assert processor.process("a", prompt).prompt_token_ids == [0]  # what begins every text

    class AddsNothing:
        def encode(self, text: str) -> list[int]:
            return [*map(ord, text)]

    tokenizer: Any = AddsNothing()
    with pytest.raises(BadRequest, match="the decoder prompt cannot be empty"):
        Processor(config.model, tokenizer).process("a", prompt)


def test_priorities_need_the_policy_that_goes_by_them(config: VllmConfig) -> None:
    tokenizer = model_tokenizer(config.model)
    with pytest.raises(BadRequest, match="--scheduling-policy priority") as caught:
        Processor(config.model, tokenizer).process("a", [5], priority=1)
    assert caught.value.param == "priority"

    assert Processor(config.model, tokenizer).process("a", [5], priority=0).children
    request = Processor(config.model, tokenizer, "priority").process("a", [5], priority=-3)
    assert request.children[0].priority == -3


def test_min_tokens_that_do_not_fit_are_refused(processor: Processor) -> None:
    with pytest.raises(BadRequest, match="min_tokens=20 cannot be reached"):
        processor.process("a", [5] * 1010, SamplingParams(max_tokens=None, min_tokens=20))


@pytest.mark.parametrize(
    ("keep", "expected"), [(2, [3, 4]), (50, [1, 2, 3, 4]), (-1, [1, 2, 3, 4])]
)
def test_truncation_keeps_the_last_tokens(
    processor: Processor, keep: int, expected: list[int]
) -> None:
    params = SamplingParams(truncate_prompt_tokens=keep)
    assert processor.process("a", [1, 2, 3, 4], params).prompt_token_ids == expected


@pytest.mark.parametrize(("max_tokens", "kept"), [(100, 924), (1000, 512), (1024, 1023)])
def test_truncation_to_what_fits_leaves_room_for_the_output_and_half_the_prompt(
    processor: Processor, max_tokens: int, kept: int
) -> None:
    params = SamplingParams(truncate_prompt_tokens=-1, max_tokens=max_tokens)
    assert len(processor.process("a", [5] * 5000, params).prompt_token_ids) == kept


def test_more_sequences_than_memory_could_hold_are_refused(processor: Processor) -> None:
    with pytest.raises(BadRequest, match="n=1000000000"):
        processor.process("a", [5], SamplingParams(n=10**9))


def test_truncation_to_more_than_the_model_takes_is_refused(processor: Processor) -> None:
    with pytest.raises(BadRequest, match="truncate_prompt_tokens=2000"):
        processor.process("a", [5], SamplingParams(truncate_prompt_tokens=2000))


def test_every_sequence_has_a_seed_of_its_own(processor: Processor) -> None:
    request = processor.process("a", [5], SamplingParams(n=3, best_of=8, seed=2**63 - 1))
    seeds = [child.params.seed for child in request.children]
    assert len(set(seeds)) == 8
    assert seeds[0] == 2**63 - 1
    assert all(-(2**63) <= seed < 2**63 for seed in seeds if seed is not None)


def test_seeds_of_requests_without_one_repeat_with_the_engine_seed(config: VllmConfig) -> None:
    def seeds() -> list[int | None]:
        processor = Processor(config.model, model_tokenizer(config.model))
        return [processor.process(str(i), [5]).params.seed for i in range(5)]

    assert seeds() == seeds()
    assert len(set(seeds())) == 5


def test_the_parameters_of_the_caller_are_not_changed(processor: Processor) -> None:
    params = SamplingParams(max_tokens=None, n=2, bad_words=["cat"])
    processor.process("a", [5], params)
    assert params == SamplingParams(max_tokens=None, n=2, bad_words=["cat"])


def test_sequences_report_the_log_probabilities_that_ranking_needs(processor: Processor) -> None:
    params = SamplingParams(n=1, best_of=2, prompt_logprobs=1)
    first, second = processor.process("a", [5, 6], params).children
    assert first.params.logprobs == second.params.logprobs == 0
    assert (first.params.prompt_logprobs, second.params.prompt_logprobs) == (1, None)
    assert (first.params.n, first.params.best_of) == (1, None)


def test_bad_words_become_token_ids(processor: Processor) -> None:
    request = processor.process("a", [5], SamplingParams(bad_words=["cat"]))
    assert request.children[0].params.bad_words_token_ids


def test_ids_of_the_core_differ_when_a_caller_uses_an_id_again(processor: Processor) -> None:
    first, second = (processor.process("a", [5]).children[0].request_id for _ in range(2))
    assert first != second


def test_what_depends_on_the_model_is_checked(processor: Processor) -> None:
    with pytest.raises(BadRequest, match="--max-logprobs"):
        processor.process("a", [5], SamplingParams(logprobs=1000))
    with pytest.raises(BadRequest, match="stop_token_ids"):
        processor.process("a", [5], SamplingParams(stop_token_ids=[10**6]))
    with pytest.raises(BadRequest, match="sampling_params must be"):
        processor.process("a", [5], {"n": 1})  # type: ignore[arg-type]


def test_without_parameters_those_of_the_model_count(config: VllmConfig) -> None:
    model = dataclasses.replace(config.model, default_sampling_params={"temperature": 0.25})
    request = Processor(model, model_tokenizer(model)).process("a", [5])
    assert request.params.temperature == 0.25


@pytest.mark.parametrize("params", [{"stop": "x"}, {"bad_words": ["x"]}])
def test_without_a_tokenizer_what_needs_text_is_refused(
    config_without_tokenizer: VllmConfig, params: dict[str, Any]
) -> None:
    processor = Processor(config_without_tokenizer.model, None)
    assert processor.process("a", [5]).params.detokenize is False
    with pytest.raises(NotAvailable, match="--skip-tokenizer-init"):
        processor.process("a", [5], SamplingParams(**params))
    with pytest.raises(NotAvailable, match="prompts must be token ids"):
        processor.process("a", "text")
