"""What a request says of its form, in vLLM's own terms, and under which name errors come back."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from tests.structured_output.conftest import EOS, can_be_whole, ready
from vllm.config.structured import StructuredOutputsConfig
from vllm.errors import BadRequest
from vllm.sampling_params import GuidedDecodingParams, SamplingParams, StructuredOutputsParams
from vllm.structured_output.compiler import GrammarCompiler
from vllm.structured_output.grammar import GrammarError

LARK = 'start: "x" ("y"|"z")+'
ONLY_GUIDANCE = {"json": {"type": "integer", "multipleOf": 7}}


def test_forms_may_be_given_in_order() -> None:
    assert GuidedDecodingParams({"type": "integer"}).kind == "json"
    assert GuidedDecodingParams(None, "a+").regex == "a+"
    assert GuidedDecodingParams(None, None, ["a", "b"]).choice == ["a", "b"]
    assert GuidedDecodingParams(None, None, None, "root ::= [a]").kind == "grammar"
    assert GuidedDecodingParams(None, None, None, None, True).kind == "json_object"


def test_every_field_of_vllm_is_known() -> None:
    params = GuidedDecodingParams(
        json=None,
        regex="a",
        choice=None,
        grammar=None,
        json_object=None,
        backend="guidance",
        backend_was_auto=False,
        disable_fallback=True,
        disable_any_whitespace=True,
        disable_additional_properties=True,
        whitespace_pattern=" ?",
        structural_tag=None,
    )
    assert params.disable_fallback
    assert not params.all_constraints_none()
    assert not params.all_non_structural_tag_constraints_none()
    assert SamplingParams(guided_decoding=params).structured_outputs is not None


def test_from_optional_is_none_without_a_form() -> None:
    assert GuidedDecodingParams.from_optional(backend="xgrammar") is None
    params = GuidedDecodingParams.from_optional(
        None, None, ["a"], None, None, "guidance", None, None
    )
    assert params is not None and (params.kind, params.backend) == ("choice", "guidance")


@pytest.mark.parametrize(
    "options",
    [
        {"disable_fallback": True},
        {"disable_fallback": True, "backend": "auto"},
        {"backend": "auto:no-fallback"},
        {"backend": "xgrammar"},
    ],
    ids=str,
)
def test_without_a_fallback_what_xgrammar_cannot_do_is_refused(
    options: dict[str, Any], compiler: GrammarCompiler
) -> None:
    with pytest.raises(GrammarError, match=r"xgrammar does not support .*multipleOf"):
        ready(compiler.submit(StructuredOutputsParams(**ONLY_GUIDANCE, **options)))


def test_the_server_may_disable_the_fallback(tokenizer: PreTrainedTokenizerBase) -> None:
    config = StructuredOutputsConfig(disable_fallback=True)
    compiler = GrammarCompiler(config, len(tokenizer), {EOS}, lambda: tokenizer)
    assert ready(compiler.submit(StructuredOutputsParams(regex="a")))
    with pytest.raises(GrammarError, match="multipleOf"):
        ready(compiler.submit(StructuredOutputsParams(**ONLY_GUIDANCE)))
    compiler.stop()


@pytest.mark.parametrize("backend", [None, "auto", "xgrammar", "guidance"])
def test_a_lark_grammar_is_read_whatever_backend_is_named(
    backend: str | None, compiler: GrammarCompiler, tokenizer: PreTrainedTokenizerBase
) -> None:
    params = StructuredOutputsParams(grammar=LARK, backend=backend)
    assert can_be_whole("xyz", ready(compiler.submit(params)), tokenizer)
    assert not can_be_whole("xa", ready(compiler.submit(params)), tokenizer)


def test_a_lark_grammar_is_refused_where_no_other_backend_may_read_it(
    compiler: GrammarCompiler,
) -> None:
    params = StructuredOutputsParams(grammar=LARK, backend="xgrammar", disable_fallback=True)
    with pytest.raises(GrammarError, match="Lark"):
        ready(compiler.submit(params))


@pytest.mark.parametrize("name", ["tools", "response_format", "guided_regex"])
def test_an_error_names_what_was_sent(name: str) -> None:
    with pytest.raises(BadRequest, match=f"^{name}: regex is empty$") as caught:
        StructuredOutputsParams(regex=" ", asked_as=name)
    assert caught.value.param == name
