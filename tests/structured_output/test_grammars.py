"""Grammars alone, without an engine: what they allow, refuse and cost."""

from __future__ import annotations

import random

import numpy as np
import pytest

from tests.structured_output.conftest import EOS, allowed_by, ready
from tests.structured_output.drawing import random_text
from tests.structured_output.forms import FORMS, Form
from vllm.config.structured import StructuredOutputsConfig
from vllm.sampling_params import StructuredOutputsParams
from vllm.structured_output.compiler import GrammarCompiler
from vllm.structured_output.grammar import GrammarError


@pytest.mark.parametrize("backend", ["xgrammar", "guidance"])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_whatever_is_drawn_from_the_masks_has_the_form(form, backend, compiler, tokenizer):
    rng = random.Random(5)
    complete = 0
    for _ in range(20):
        grammar = ready(compiler.submit(form.structured(backend=backend)))
        text = random_text(grammar, tokenizer, rng)
        if text is not None:
            assert form.has(text), text
            complete += 1
    assert complete >= 5


@pytest.mark.parametrize("backend", ["xgrammar", "guidance"])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_token_is_in_the_mask_if_and_only_if_it_is_accepted(form, backend, compiler, tokenizer):
    params = form.structured(backend=backend)
    rng = random.Random(7)
    prefix: list[int] = []
    for _ in range(4):
        grammar = ready(compiler.submit(params))
        for token_id in prefix:
            assert grammar.accept(token_id)
        allowed = set(allowed_by(grammar, len(tokenizer)).tolist())
        for token_id in rng.sample(range(len(tokenizer)), 200):
            fresh = ready(compiler.submit(params))
            for earlier in prefix:
                fresh.accept(earlier)
            assert fresh.accept(token_id) == (token_id in allowed), token_id
        if (rest := allowed - {EOS}) == set():
            break
        prefix.append(rng.choice(sorted(rest)))


@pytest.mark.parametrize("backend", ["xgrammar", "guidance"])
def test_a_token_that_is_refused_changes_nothing(backend, compiler, tokenizer):
    grammar = ready(compiler.submit(StructuredOutputsParams(regex="ab+", backend=backend)))
    before = allowed_by(grammar, len(tokenizer))
    wrong = next(t for t in range(2, len(tokenizer)) if t not in set(before.tolist()))
    assert not grammar.accept(wrong)
    assert np.array_equal(allowed_by(grammar, len(tokenizer)), before)
    assert not grammar.finished


def test_one_form_is_compiled_once_and_its_sequences_are_independent(compiler, tokenizer):
    params = StructuredOutputsParams(regex="[ab]c")
    first = compiler.submit(params)
    one, other = ready(first), ready(compiler.submit(params))
    assert compiler.submit(params).missing is first.missing
    before = allowed_by(other, len(tokenizer))
    assert one.accept(int(allowed_by(one, len(tokenizer))[0]))
    assert np.array_equal(allowed_by(other, len(tokenizer)), before)


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        ({"regex": "(a"}, "not closed"),
        ({"json": {"type": "elephant"}}, "elephant"),
        ({"json": {"$ref": "#"}}, "no text"),
        ({"json": {"type": "integer", "minimum": 3, "maximum": 2}}, "minimum"),
        ({"json": False}, "annot accept|nsatisfiable|no text"),
        ({"grammar": "root ::= other"}, "other"),
        ({"structural_tag": {"type": "structural_tag"}}, "structures"),
        ({"structural_tag": {"format": {"type": "banana"}}}, "banana"),
        ({"regex": "(?=a)b", "backend": "xgrammar"}, "lookaround"),
        ({"json": {"type": "integer", "multipleOf": 7}, "backend": "xgrammar"}, "multipleOf"),
    ],
    ids=str,
)
def test_a_form_that_cannot_be_met_is_refused_with_a_reason(params, reason, compiler):
    with pytest.raises(GrammarError, match=reason):
        ready(compiler.submit(StructuredOutputsParams(**params)))


@pytest.mark.parametrize(
    "form",
    [
        Form("multiple", {"json": {"type": "integer", "multipleOf": 7}}, lambda t: int(t) % 7 == 0),
        Form("lark", {"grammar": 'start: "x" ("y"|"z")+'}, lambda t: t.strip("yz") == "x"),
    ],
    ids=str,
)
def test_what_one_backend_cannot_do_another_does(form, compiler, tokenizer):
    rng = random.Random(1)
    texts = [
        random_text(ready(compiler.submit(form.structured())), tokenizer, rng) for _ in range(20)
    ]
    complete = [text for text in texts if text is not None]
    assert complete and all(form.has(text) for text in complete)


def test_without_an_end_token_a_grammar_ends_with_its_last_token(tokenizer):
    compiler = GrammarCompiler(StructuredOutputsConfig(), len(tokenizer), (), lambda: tokenizer)
    grammar = ready(compiler.submit(StructuredOutputsParams(choice=["yes", "no"])))
    ids = []
    while not grammar.finished:
        ids.append(int(allowed_by(grammar, len(tokenizer))[0]))
        assert grammar.accept(ids[-1])
    assert tokenizer.decode(ids) in ("yes", "no")
    with pytest.raises(GrammarError, match="end token"):
        ready(compiler.submit(StructuredOutputsParams(regex="a", backend="guidance")))
