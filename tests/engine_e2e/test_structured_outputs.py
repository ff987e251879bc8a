"""Output always has its form, in every combination, and those beside it notice nothing."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.structured_output.forms import FORMS, follows
from vllm import LLM, RequestOutput, SamplingParams
from vllm.errors import BadRequest
from vllm.sampling_params import StructuredOutputsParams
from vllm.structured_params import ReasoningFirst

pytestmark = pytest.mark.engine

PLAIN = SamplingParams(temperature=0.9, seed=3, max_tokens=24, ignore_eos=True)
PROMPTS = ["Once upon a time", "What is 12 + 7?", "Tell me a story about a brave cat."]


def make_llm(model: Path, **options: Any) -> LLM:
    return LLM(
        str(model),
        dtype="float32",
        max_model_len=256,
        max_num_seqs=16,
        block_size=16,
        disable_log_stats=True,
        **options,
    )


@pytest.fixture(scope="module")
def story(tiny_story: Path) -> Iterator[LLM]:
    llm = make_llm(tiny_story)
    yield llm
    llm.llm_engine.shutdown()


def formed(seed: int = 0, **changes: Any) -> list[SamplingParams]:
    """One request for each form, temperature and backend."""
    return [
        SamplingParams(
            temperature=temperature,
            max_tokens=120,
            seed=seed + index,
            structured_outputs=form.structured(backend=backend),
            **changes,
        )
        for index, form in enumerate(FORMS)
        for temperature in (0.0, 1.0, 2.0)
        for backend in ("xgrammar", "guidance")
    ]


def after_reasoning() -> list[SamplingParams]:
    """Forms that begin after the first of two letters, which most tokens have in their middle."""
    reasoning = ReasoningFirst(starts=("<think>",), ends=("e", "o"), is_open=True)
    params = formed(seed=50)[1::3]
    for own in params:
        assert own.structured_outputs is not None
        own.structured_outputs = msgspec.structs.replace(
            own.structured_outputs, reasoning=reasoning
        )
    return params


def check(output: RequestOutput, params: SamplingParams) -> int:
    """Every complete text has its form; returns how many are complete."""
    assert params.structured_outputs is not None
    form = next(f for f in FORMS if params.structured_outputs.kind in f.params)
    complete = 0
    for sequence in output.outputs:
        assert sequence.finish_reason in ("stop", "length")
        text = sequence.text
        if (reasoning := params.structured_outputs.reasoning) is not None:
            text = re.split("|".join(reasoning.ends), text, maxsplit=1)[-1]
            if text == sequence.text:
                continue  # it ended in the middle of reasoning
        if sequence.finish_reason == "stop":
            assert form.has(text), sequence.text
            complete += 1
    return complete


@pytest.mark.parametrize("executor", ["uni", "mp"])
@pytest.mark.parametrize("preemption", [False, True], ids=["roomy", "preempting"])
@pytest.mark.parametrize("depth", [1, 2, 4])
def test_forms_hold_and_neighbours_notice_nothing(
    tiny_story: Path, story: LLM, depth: int, preemption: bool, executor: str
) -> None:
    params = [p for own in [*formed(), *after_reasoning()] for p in (own, PLAIN)]
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(len(params))]
    expected = story.generate(prompts, params, use_tqdm=False)
    llm = make_llm(
        tiny_story,
        pipeline_depth=depth,
        max_num_batched_tokens=32,
        distributed_executor_backend=executor,
        num_gpu_blocks_override=24 if preemption else 1024,
    )
    try:
        outputs = llm.generate(prompts, params, use_tqdm=False)
        core = llm.llm_engine.client.core
        assert (core.scheduler.snapshot().num_preemptions > 0) == preemption
        core.check_integrity()
    finally:
        llm.llm_engine.shutdown()
        gc.collect()
    complete = sum(check(o, p) for o, p in zip(outputs, params, strict=True) if p is not PLAIN)
    assert complete > len(params) // 4
    for output, other in zip(outputs, expected, strict=True):
        assert output.outputs[0].token_ids == other.outputs[0].token_ids
    alone = [story.generate(prompt, PLAIN, use_tqdm=False)[0] for prompt in PROMPTS]
    for index, output in enumerate(outputs):
        if params[index] is PLAIN:
            own = alone[index % len(PROMPTS)].outputs[0].token_ids
            assert output.outputs[0].token_ids == own


def test_a_model_that_talks_nonsense_keeps_to_the_form_too(
    checkpoint: Callable[..., Path],
) -> None:
    llm = make_llm(checkpoint("llama"))
    try:
        params = formed(n=1)
        outputs = llm.generate([PROMPTS[0]] * len(params), params, use_tqdm=False)
        assert sum(check(o, p) for o, p in zip(outputs, params, strict=True)) > 0
    finally:
        llm.llm_engine.shutdown()


def test_each_of_several_sequences_has_the_form(story: LLM) -> None:
    for form in FORMS:
        params = SamplingParams(
            n=4, temperature=1.0, max_tokens=120, structured_outputs=form.structured()
        )
        (output,) = story.generate(PROMPTS[:1], params, use_tqdm=False)
        assert len(output.outputs) == 4
        check(output, params)


@pytest.mark.parametrize("field", ["logprobs", "prompt_logprobs"])
def test_log_probabilities_come_with_a_form(story: LLM, field: str) -> None:
    params = SamplingParams(max_tokens=40, structured_outputs=FORMS[1].structured(), **{field: 2})
    (output,) = story.generate(PROMPTS[:1], params, use_tqdm=False)
    values = output.outputs[0].logprobs if field == "logprobs" else output.prompt_logprobs
    tokens = output.outputs[0].token_ids if field == "logprobs" else output.prompt_token_ids
    assert values is not None and len(values) == len(tokens)
    check(output, params)


@pytest.mark.parametrize(
    "changes",
    [
        {"ignore_eos": True},
        {"min_tokens": 100},
        {"bad_words": ["red", "green", "dark"]},
        {"logit_bias": {1: -100.0}},
        {"repetition_penalty": 2.0, "presence_penalty": 2.0},
        {"top_k": 1},
        {"min_p": 1.0},
    ],
    ids=str,
)
def test_the_form_wins_over_what_else_is_asked_of_tokens(
    story: LLM, changes: dict[str, Any]
) -> None:
    params = SamplingParams(
        max_tokens=120, seed=1, structured_outputs=FORMS[2].structured(), **changes
    )
    (output,) = story.generate(PROMPTS[:1], params, use_tqdm=False)
    assert output.outputs[0].finish_reason == "stop"
    assert FORMS[2].has(output.outputs[0].text)


def test_a_limit_of_tokens_cuts_the_form_and_says_so(story: LLM) -> None:
    params = SamplingParams(max_tokens=5, structured_outputs=FORMS[0].structured())
    (output,) = story.generate(PROMPTS[:1], params, use_tqdm=False)
    assert output.outputs[0].finish_reason == "length"
    assert len(output.outputs[0].token_ids) == 5


def test_a_stop_string_ends_the_text_inside_a_form(story: LLM) -> None:
    params = SamplingParams(
        max_tokens=40, stop=["-"], structured_outputs=StructuredOutputsParams(regex="[ab]{2}-[0-9]")
    )
    (output,) = story.generate(PROMPTS[:1], params, use_tqdm=False)
    assert output.outputs[0].stop_reason == "-" and set(output.outputs[0].text) <= {"a", "b"}


def test_before_the_form_begins_the_output_is_what_it_would_be(story: LLM) -> None:
    free = SamplingParams(temperature=0.0, max_tokens=10, ignore_eos=True)
    (plain,) = story.generate(PROMPTS[:1], free, use_tqdm=False)
    end = story.get_tokenizer().decode(plain.outputs[0].token_ids[4:6])
    reasoning = ReasoningFirst(starts=(), ends=(end,), is_open=True)
    form = StructuredOutputsParams(choice=["<yes>", "<no>"], reasoning=reasoning)
    asked = SamplingParams(temperature=0.0, max_tokens=40, structured_outputs=form)
    (output,) = story.generate(PROMPTS[:1], asked, use_tqdm=False)
    assert output.outputs[0].token_ids[:6] == plain.outputs[0].token_ids[:6]
    assert output.outputs[0].text.endswith(("<yes>", "<no>"))


@pytest.mark.parametrize("backend", ["xgrammar", "guidance"])
def test_a_model_that_opens_no_reasoning_keeps_to_the_form_at_once(
    story: LLM, backend: str
) -> None:
    reasoning = ReasoningFirst(starts=("<think>",), ends=("</think>",), is_open=False)
    form = StructuredOutputsParams(choice=["<yes>", "<no>"], reasoning=reasoning, backend=backend)
    params = SamplingParams(temperature=1.0, seed=4, max_tokens=40, structured_outputs=form)
    for output in story.generate(PROMPTS, params, use_tqdm=False):
        assert output.outputs[0].text in ("<yes>", "<no>")


def test_a_form_that_cannot_be_met_fails_its_own_call_only(story: LLM) -> None:
    wrong = SamplingParams(structured_outputs=StructuredOutputsParams(json={"$ref": "#"}))
    with pytest.raises(BadRequest, match="no text") as caught:
        story.generate(PROMPTS, [PLAIN, wrong, PLAIN], use_tqdm=False)
    assert caught.value.param == "structured_outputs"
    assert not story.llm_engine.has_unfinished_requests()
    assert story.generate(PROMPTS[:1], PLAIN, use_tqdm=False)[0].finished
    story.llm_engine.client.core.check_integrity()


def test_aborting_a_request_whose_form_compiles_leaves_nothing(story: LLM) -> None:
    slow = StructuredOutputsParams(regex="|".join("ab" * i for i in range(1, 120)))
    engine = story.llm_engine
    engine.add_request("slow", PROMPTS[0], SamplingParams(structured_outputs=slow))
    engine.step()
    engine.abort_request(["slow"])
    while engine.has_unfinished_requests():
        engine.step()
    engine.client.core.check_integrity()


scalars = st.sampled_from(
    [
        {"type": "string", "maxLength": 6},
        {"type": "string", "enum": ["a", "b c", 'q"uote', "new\nline", "ünï"]},
        {"type": "integer", "minimum": -5, "maximum": 300},
        {"type": "boolean"},
        {"type": "null"},
        {"const": {"a": [1, "x"]}},
        {"type": "string", "pattern": "^[A-Z]{2}[0-9]$"},
        {"type": "string", "format": "uuid"},
    ]
)
schemas = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.builds(
            lambda items, most: {"type": "array", "items": items, "maxItems": most},
            inner,
            st.integers(0, 2),
        ),
        st.builds(
            lambda members: {
                "type": "object",
                "properties": members,
                "required": sorted(members)[:2],
                "additionalProperties": False,
            },
            st.dictionaries(st.sampled_from(["a", "b", "long name", 'q"']), inner, max_size=3),
        ),
        st.builds(lambda some: {"anyOf": some}, st.lists(inner, min_size=1, max_size=2)),
    ),
    max_leaves=5,
)


@settings(
    max_examples=25, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(schema=schemas)
def test_any_schema_is_followed(story: LLM, schema: Any) -> None:
    jsonschema.Draft202012Validator.check_schema(schema)
    params = [
        SamplingParams(
            temperature=temperature,
            seed=7,
            max_tokens=150,
            structured_outputs=StructuredOutputsParams(
                json=schema, backend=backend, disable_any_whitespace=True
            ),
        )
        for temperature in (0.7, 1.5)
        for backend in ("xgrammar", "guidance")
    ]
    for output in story.generate([PROMPTS[0]] * len(params), params, use_tqdm=False):
        if output.outputs[0].finish_reason == "stop":
            assert follows(schema)(output.outputs[0].text)


def test_a_grammar_that_exceeds_its_library_fails_its_own_call_only(story: LLM) -> None:
    rules = "".join(f"a{i}: a{i + 1} a{i + 1}\n" for i in range(60))
    form = StructuredOutputsParams(grammar=f'start: a0\n{rules}a60: "x"', backend="guidance")
    with pytest.raises(BadRequest):
        story.generate(
            PROMPTS[:1], SamplingParams(max_tokens=20, structured_outputs=form), use_tqdm=False
        )
    story.llm_engine.client.core.check_integrity()
