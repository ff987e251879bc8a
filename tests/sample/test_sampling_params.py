from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest

from vllm.errors import BadRequest, NotAvailable
from vllm.messages.engine import EngineRequest
from vllm.pooling_params import PoolingParams
from vllm.sampling_params import (
    BeamSearchParams,
    RequestOutputKind,
    SamplingParams,
    SamplingType,
    refuse_on_wire,
)

FULL: dict[str, Any] = {
    "n": 2,
    "best_of": 3,
    "presence_penalty": 0.5,
    "frequency_penalty": -0.5,
    "repetition_penalty": 1.1,
    "temperature": 0.7,
    "top_p": 0.9,
    "top_k": 40,
    "min_p": 0.05,
    "seed": -(2**63),
    "stop": ["a", "bc"],
    "stop_token_ids": [5, 6],
    "ignore_eos": True,
    "max_tokens": 33,
    "min_tokens": 2,
    "logprobs": 3,
    "prompt_logprobs": -1,
    "skip_special_tokens": False,
    "spaces_between_special_tokens": False,
    "include_stop_str_in_output": True,
    "truncate_prompt_tokens": 9,
    "output_kind": RequestOutputKind.FINAL_ONLY,
    "logit_bias": {7: -3.5},
    "allowed_token_ids": [1, 7],
    "bad_words": ["word"],
    "bad_words_token_ids": [[3, 4]],
}

REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"n": 0}, "n", "n must be an integer >= 1, got 0"),
    ({"n": 1.5}, "n", "got 1.5"),
    ({"n": True}, "n", "got True"),
    ({"n": 3, "best_of": 2}, "best_of", "best_of=2, n=3"),
    ({"best_of": 0}, "best_of", ">= 1, got 0"),
    ({"best_of": 2, "temperature": 0}, "best_of", "must be 1 with temperature=0"),
    ({"n": 2, "temperature": 0}, "n", "must be 1 with temperature=0"),
    ({"best_of": 2, "output_kind": RequestOutputKind.DELTA}, "best_of", "cannot stream"),
    ({"presence_penalty": 2.1}, "presence_penalty", ">= -2 and <= 2, got 2.1"),
    ({"presence_penalty": math.nan}, "presence_penalty", "got nan"),
    ({"frequency_penalty": -3}, "frequency_penalty", "got -3"),
    ({"repetition_penalty": 1e-40}, "repetition_penalty", ">= 1e-06 and <= 1e+06, got 1e-40"),
    ({"repetition_penalty": 1e30}, "repetition_penalty", ">= 1e-06 and <= 1e+06, got 1e+30"),
    ({"temperature": 1e30}, "temperature", ">= 0 and <= 1e+06, got 1e+30"),
    ({"logit_bias": {1: 1e30}}, "logit_bias", ">= -1e+06 and <= 1e+06, got 1e+30"),
    ({"repetition_penalty": 0.0}, "repetition_penalty", ">= 1e-06 and <= 1e+06, got 0.0"),
    ({"repetition_penalty": math.inf}, "repetition_penalty", "got inf"),
    ({"temperature": -0.1}, "temperature", ">= 0 and <= 1e+06, got -0.1"),
    ({"temperature": math.nan}, "temperature", "got nan"),
    ({"temperature": math.inf}, "temperature", "got inf"),
    ({"temperature": "0.5"}, "temperature", "got '0.5'"),
    ({"temperature": None}, "temperature", "got None"),
    ({"top_p": 0.0}, "top_p", "in (0, 1], got 0.0"),
    ({"top_p": 1.01}, "top_p", "in (0, 1], got 1.01"),
    ({"top_p": math.nan}, "top_p", "got nan"),
    ({"top_k": -2}, "top_k", ">= -1, got -2"),
    ({"top_k": 2.0}, "top_k", "got 2.0"),
    ({"min_p": -0.1}, "min_p", ">= 0 and <= 1"),
    ({"min_p": 1.1}, "min_p", ">= 0 and <= 1"),
    ({"seed": 2**63}, "seed", "<= 9223372036854775807"),
    ({"seed": 0.5}, "seed", "got 0.5"),
    ({"stop": ""}, "stop", "empty string"),
    ({"stop": ["a", ""]}, "stop", "empty string"),
    ({"stop": [1]}, "stop", "got [1]"),
    ({"stop": "a", "detokenize": False}, "stop", "detokenize=False"),
    ({"stop_token_ids": [-1]}, "stop_token_ids", "got -1"),
    ({"stop_token_ids": "ab"}, "stop_token_ids", "got 'ab'"),
    ({"bad_words": [""]}, "bad_words", "empty string"),
    ({"max_tokens": 0}, "max_tokens", ">= 1, got 0"),
    ({"max_tokens": -5}, "max_tokens", ">= 1, got -5"),
    ({"min_tokens": -1}, "min_tokens", ">= 0, got -1"),
    ({"min_tokens": 17}, "min_tokens", "max_tokens=16, got 17"),
    ({"logprobs": -2}, "logprobs", ">= -1, got -2"),
    ({"prompt_logprobs": -2}, "prompt_logprobs", ">= -1, got -2"),
    ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens", "got 0"),
    ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens", "got -2"),
    ({"output_kind": 1}, "output_kind", "CUMULATIVE, DELTA, FINAL_ONLY, got 1"),
    ({"logit_bias": {1: math.nan}}, "logit_bias", "got nan"),
    ({"logit_bias": {-1: 1.0}}, "logit_bias", "got -1"),
    ({"logit_bias": [1]}, "logit_bias", "got [1]"),
    ({"allowed_token_ids": []}, "allowed_token_ids", "empty"),
    ({"allowed_token_ids": [1.0]}, "allowed_token_ids", "got 1.0"),
    ({"logits_processors": [3]}, "logits_processors", "callables, got 3"),
    ({"extra_args": {"a": 1}}, "extra_args", "nothing in this engine reads"),
    ({"structured_outputs": {"json": {}, "regex": "a"}}, "structured_outputs", "exactly one"),
    ({"structured_outputs": {}}, "structured_outputs", "got none"),
    ({"structured_outputs": {"json": "{"}}, "structured_outputs", "not valid JSON"),
    ({"structured_outputs": {"choice": []}}, "structured_outputs", "not empty"),
    ({"structured_outputs": {"regx": "a"}}, "structured_outputs", "regx"),
    ({"structured_outputs": {"regex": "a" * 2**18}}, "structured_outputs", "characters"),
    ({"structured_outputs": {"regex": "a", "backend": "b"}}, "structured_outputs", "one of auto"),
    ({"structured_outputs": 3}, "structured_outputs", "got 3"),
]


@pytest.mark.parametrize(("kwargs", "param", "message"), REFUSED, ids=lambda x: str(x)[:40])
def test_a_wrong_value_is_refused_by_field_and_value(
    kwargs: dict[str, Any], param: str, message: str
) -> None:
    with pytest.raises(BadRequest) as caught:
        SamplingParams(**kwargs)

    assert caught.value.param == param
    assert param in str(caught.value) and message in str(caught.value)


def test_what_is_not_available_says_so_by_type() -> None:
    with pytest.raises(NotAvailable):
        SamplingParams(extra_args={"a": 1})


@pytest.mark.parametrize(
    "kwargs",
    [
        {"temperature": 1},
        {"top_k": -1},
        {"seed": 2**63 - 1},
        {"max_tokens": None, "min_tokens": 100},
        {"stop": ("a", "b")},
        {"n": 1, "best_of": 1, "temperature": 0},
    ],
)
def test_values_at_the_edge_are_accepted(kwargs: dict[str, Any]) -> None:
    SamplingParams(**kwargs)


def test_a_request_survives_the_wire_unchanged() -> None:
    for kwargs in ({}, FULL, {"temperature": 0.0, "max_tokens": None}):
        request = EngineRequest("a", [1, 2], SamplingParams(**kwargs), 1.5)

        received = msgspec.msgpack.decode(msgspec.msgpack.encode(request), type=EngineRequest)

        assert received == request
        assert received.params.output_kind is request.params.output_kind


def test_callables_are_refused_by_the_wire() -> None:
    params = SamplingParams(logits_processors=[lambda ids, logits: logits])

    with pytest.raises(NotAvailable, match="cannot be sent to an engine in another process"):
        msgspec.msgpack.encode(params, enc_hook=refuse_on_wire)
    with pytest.raises(TypeError, match="cannot encode a object"):
        msgspec.msgpack.encode({"x": object()}, enc_hook=refuse_on_wire)


def test_a_clone_shares_nothing_but_callables() -> None:
    def processor(ids: list[int], logits: Any) -> Any:
        return logits

    params = SamplingParams(**FULL, logits_processors=[processor])

    clone = params.clone()
    assert clone == params
    clone.stop_strings.append("z")
    assert clone.bad_words_token_ids is not None and clone.logits_processors is not None
    clone.bad_words_token_ids[0].append(1)
    clone.seed = 3

    assert params == SamplingParams(**FULL, logits_processors=[processor])
    assert clone.logits_processors == [processor]


def test_from_optional_takes_none_for_the_default_and_limits_biases() -> None:
    params = SamplingParams.from_optional(
        temperature=None, top_p=0.5, max_tokens=None, logit_bias={"4": 300, 5: -300}
    )

    assert params == SamplingParams(top_p=0.5, max_tokens=None, logit_bias={4: 100.0, 5: -100.0})
    with pytest.raises(BadRequest, match="key 'x'"):
        SamplingParams.from_optional(logit_bias={"x": 1})
    with pytest.raises(BadRequest, match="unknown sampling parameters: temprature"):
        SamplingParams.from_optional(temprature=1.0)


def test_derived_properties() -> None:
    assert SamplingParams(temperature=0).sampling_type is SamplingType.GREEDY
    assert SamplingParams().sampling_type is SamplingType.RANDOM
    assert SamplingParams(seed=0).sampling_type is SamplingType.RANDOM_SEED
    assert SamplingParams(seed=-1).seed is None
    assert SamplingParams(n=2).num_sequences == 2
    assert SamplingParams(n=2, best_of=5).num_sequences == 5
    assert SamplingParams(stop=["ab", "wxyz"]).output_text_buffer_length == 3
    assert SamplingParams(stop="ab", include_stop_str_in_output=True).output_text_buffer_length == 0
    assert SamplingParams(logprobs=True).logprobs == 1


class WordTokenizer:
    """One token per letter; a leading space belongs to the letter after it."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        assert not add_special_tokens
        spaced = text.startswith(" ")
        return [ord(c) + (1000 if spaced and i == 0 else 0) for i, c in enumerate(text.strip())]


def test_bad_words_become_tokens_with_and_without_a_space_before_them() -> None:
    params = SamplingParams(bad_words=["ab", " c"])

    params.resolve_bad_words(WordTokenizer())

    assert params.bad_words_token_ids == [[97, 98], [1097, 98], [1099]]


def test_a_bad_word_without_tokens_is_refused() -> None:
    with pytest.raises(BadRequest, match="bad_words: ' ' has no tokens"):
        SamplingParams(bad_words=[" "]).resolve_bad_words(WordTokenizer())


@pytest.mark.parametrize(
    ("kwargs", "param"),
    [
        ({"logprobs": 6}, "logprobs"),
        ({"logprobs": -1}, "logprobs"),
        ({"prompt_logprobs": 6}, "prompt_logprobs"),
        ({"logit_bias": {100: 1.0}}, "logit_bias"),
        ({"allowed_token_ids": [1, 100]}, "allowed_token_ids"),
        ({"stop_token_ids": [100]}, "stop_token_ids"),
        ({"bad_words_token_ids": [[1, 100]]}, "bad_words"),
        ({"allowed_token_ids": [4], "bad_words_token_ids": [[4]]}, "allowed_token_ids"),
        (
            {"allowed_token_ids": [4], "stop_token_ids": [4], "min_tokens": 2},
            "allowed_token_ids",
        ),
    ],
)
def test_what_the_model_cannot_do_is_refused(kwargs: dict[str, Any], param: str) -> None:
    params = SamplingParams(**kwargs)

    with pytest.raises(BadRequest) as caught:
        params.verify(vocab_size=100, max_logprobs=5)

    assert caught.value.param == param


def test_what_the_model_can_do_is_accepted() -> None:
    SamplingParams(**FULL | {"prompt_logprobs": 5}).verify(vocab_size=100, max_logprobs=5)
    SamplingParams(logprobs=-1).verify(vocab_size=100, max_logprobs=-1)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"beam_width": 0, "max_tokens": 4},
        {"beam_width": 2, "max_tokens": 0},
        {"beam_width": 2, "max_tokens": 4, "temperature": -1.0},
        {"beam_width": 2, "max_tokens": 4, "length_penalty": math.nan},
    ],
)
def test_wrong_beam_search_parameters_are_refused(kwargs: dict[str, Any]) -> None:
    with pytest.raises(BadRequest):
        BeamSearchParams(**kwargs)


def test_pooling_parameters_are_checked() -> None:
    assert PoolingParams(dimensions=4).clone() == PoolingParams(dimensions=4)
    with pytest.raises(BadRequest):
        PoolingParams(dimensions=0)
    with pytest.raises(BadRequest):
        PoolingParams(truncate_prompt_tokens=0)


@pytest.mark.parametrize(
    "field",
    [
        "ignore_eos",
        "detokenize",
        "skip_special_tokens",
        "spaces_between_special_tokens",
        "include_stop_str_in_output",
    ],
)
@pytest.mark.parametrize("value", ["no", 1, None])
def test_flags_are_booleans(field: str, value: Any) -> None:
    with pytest.raises(BadRequest, match=f"{field} must be True or False"):
        SamplingParams(**{field: value})
