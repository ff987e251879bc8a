"""Values that once ended the engine, or gave an answer nobody asked for."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from vllm.config.vllm import VllmConfig
from vllm.engine.processor import Processor
from vllm.engine.tokenizer import model_tokenizer
from vllm.entrypoints.llm import LLM
from vllm.errors import BadRequest
from vllm.inputs import parse_prompt
from vllm.messages.codec import encoder
from vllm.messages.engine import EngineRequest
from vllm.sampling_params import SamplingParams

LONE = "a\ud83d"


@pytest.fixture
def processor(config: VllmConfig) -> Processor:
    return Processor(config.model, model_tokenizer(config.model))


def test_every_child_seed_survives_the_wire(processor: Processor) -> None:
    params = SamplingParams(n=2, seed=7046029254386353130)
    for child in processor.process("a", [5], params).children:
        decoded = msgspec.msgpack.decode(encoder().encode(child), type=EngineRequest)
        assert decoded.params.seed == child.params.seed is not None


def test_lengths_are_bounded_by_the_model(processor: Processor) -> None:
    huge = SamplingParams(max_tokens=10**30, top_k=10**30)
    request = processor.process("a", [5] * 10, huge)
    assert request.params.max_tokens == 1014
    encoder().encode(request.children[0])
    with pytest.raises(BadRequest, match="min_tokens=4294967296 cannot be reached"):
        processor.process("a", [5], SamplingParams(max_tokens=2**33, min_tokens=2**32))


@pytest.mark.parametrize("priority", ["1", 1.5, None, True, 2**70])
def test_a_priority_is_an_integer_of_64_bits(processor: Processor, priority: Any) -> None:
    with pytest.raises(BadRequest, match="priority must be"):
        processor.process("a", [5], priority=priority)


@pytest.mark.parametrize(
    ("field", "value"), [("n", 0), ("n", "x"), ("temperature", math.nan), ("max_tokens", -5)]
)
def test_fields_set_after_construction_are_checked(
    processor: Processor, field: str, value: Any
) -> None:
    params = SamplingParams()
    setattr(params, field, value)
    with pytest.raises(BadRequest, match=field):
        processor.process("a", [5], params)


def test_a_stop_set_after_construction_is_made_a_list(processor: Processor) -> None:
    params = SamplingParams()
    params.stop = "a"
    assert processor.resolve(params).stop == ["a"]


@pytest.mark.parametrize("prompt", [LONE, {"prompt": "a", "cache_salt": LONE}])
def test_lone_surrogates_in_prompts_are_refused(prompt: Any) -> None:
    with pytest.raises(BadRequest, match="lone surrogate at character 1"):
        parse_prompt(prompt)


def test_lone_surrogates_in_ids_and_words_are_refused(processor: Processor) -> None:
    with pytest.raises(BadRequest, match="request_id is not valid Unicode"):
        processor.process(LONE, [5])
    for field in ("stop", "bad_words"):
        with pytest.raises(BadRequest, match=f"{field} is not valid Unicode"):
            SamplingParams.from_optional(**{field: LONE})


@pytest.mark.parametrize(("num_tokens", "kept"), [(500, 500), (1023, 1023), (2000, 1023)])
def test_truncation_to_what_fits_keeps_the_prompt(
    processor: Processor, num_tokens: int, kept: int
) -> None:
    params = SamplingParams(truncate_prompt_tokens=-1, max_tokens=1024)
    assert len(processor.process("a", [5] * num_tokens, params).prompt_token_ids) == kept


def test_booleans_are_no_token_ids() -> None:
    with pytest.raises(BadRequest, match="flat list of integers"):
        parse_prompt([5, True])


def _llm(processor: Processor) -> LLM:
    llm = LLM.__new__(LLM)
    llm.llm_engine = SimpleNamespace(processor=processor)  # type: ignore[assignment]
    llm._request_ids = map(str, range(9))
    return llm


@pytest.mark.parametrize("params", [{"max_tokens": 3}, [{"max_tokens": 3}], "a", 3])
def test_llm_refuses_what_is_not_sampling_params(processor: Processor, params: Any) -> None:
    with pytest.raises(BadRequest, match="must be"):
        _llm(processor).generate("a", params)
    with pytest.raises(BadRequest, match="must be BeamSearchParams"):
        _llm(processor).beam_search(["a"], SamplingParams())  # type: ignore[arg-type]
