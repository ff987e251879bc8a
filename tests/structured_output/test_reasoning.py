"""Forms that begin after reasoning, or at once where there is none."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable

import pytest
from transformers import PreTrainedTokenizerBase

from tests.structured_output.conftest import EOS, allowed_by, ready
from vllm.config.structured import StructuredOutputsConfig
from vllm.sampling_params import StructuredOutputsParams
from vllm.structured_output.compiler import GrammarCompiler
from vllm.structured_output.grammar import Grammar
from vllm.structured_params import ReasoningFirst

BACKENDS = pytest.mark.parametrize("backend", ["xgrammar", "guidance"])
Made = Callable[..., Grammar]


@pytest.fixture(scope="module")
def thinker(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """A tokenizer that has <think>, and whose </think> is in pieces that do not end with it."""
    own = type(tokenizer)(
        tokenizer_object=tokenizer.backend_tokenizer.__class__.from_str(
            tokenizer.backend_tokenizer.to_str()
        )
    )
    own.add_tokens(["<think>", "</thin", "k>{", "k>\n\n", "x</think>y", "k>", "yes", "no"])
    return own


@pytest.fixture(scope="module")
def made(thinker: PreTrainedTokenizerBase) -> Made:
    """Grammars of ["yes", "no"], or of another form."""
    size = len(thinker) + 3  # models have more rows than tokenizers have tokens
    compiler = GrammarCompiler(StructuredOutputsConfig(), size, {EOS}, lambda: thinker)

    def make(
        backend: str, is_open: bool, is_spelled: bool = False, begun: str = "", **form: object
    ) -> Grammar:
        reasoning = ReasoningFirst(
            starts=("<think>", "Here is my thought:"),
            ends=("</think>", "So:"),
            is_open=is_open,
            is_spelled=is_spelled,
            begun=begun,
        )
        form = form or {"choice": ["yes", "no"]}
        params = StructuredOutputsParams(backend=backend, reasoning=reasoning, **form)
        return ready(compiler.submit(params))

    return make


def allowed_texts(grammar: Grammar, tokenizer: PreTrainedTokenizerBase) -> set[str]:
    assert grammar.restricts
    ids = allowed_by(grammar, len(tokenizer)).tolist()
    return {tokenizer.decode([token_id]) for token_id in ids}


def take(grammar: Grammar, tokenizer: PreTrainedTokenizerBase, pieces: Iterable[str]) -> None:
    """Draw each piece as one token."""
    for piece in pieces:
        token_id = tokenizer.convert_tokens_to_ids(piece)
        allowed = allowed_by(grammar, len(tokenizer)) if grammar.restricts else [token_id]
        assert token_id is not None and token_id in allowed, piece
        assert grammar.accept(token_id)


def ended(grammar: Grammar, tokenizer: PreTrainedTokenizerBase) -> str:
    """What is drawn until the end, among what is allowed."""
    rng, ids = random.Random(3), []
    while not grammar.finished:
        assert grammar.restricts
        ids.append(rng.choice(allowed_by(grammar, len(tokenizer)).tolist()))
        assert grammar.accept(ids[-1])
    return tokenizer.decode(ids, skip_special_tokens=True)


@BACKENDS
def test_a_form_holds_from_the_first_token_where_no_reasoning_is_opened(made, thinker, backend):
    grammar = made(backend, is_open=False)
    first = allowed_texts(grammar, thinker)
    assert "<think>" in first and first - {"<think>"} <= {"y", "ye", "yes", "n", "no"}
    take(grammar, thinker, ["y"])
    assert allowed_texts(grammar, thinker) <= {"e", "es"}
    assert ended(grammar, thinker) in ("es",)


@BACKENDS
def test_the_first_token_may_open_reasoning_which_is_free_up_to_its_end(made, thinker, backend):
    grammar = made(backend, is_open=False)
    take(grammar, thinker, ["<think>"])
    assert not grammar.finished
    take(grammar, thinker, ["yes", "<", "<think>", "no", "</thin", "k>"])
    assert ended(grammar, thinker) in ("yes", "no")


@BACKENDS
def test_reasoning_that_is_open_ends_however_its_end_is_written(made, thinker, backend):
    for end in (["</thin", "k>"], ["<", "/", "t", "h", "i", "n", "k", ">"], ["S", "o", ":"]):
        grammar = made(backend, is_open=True)
        assert not grammar.finished
        take(grammar, thinker, ["yes", *end])
        assert ended(grammar, thinker) in ("yes", "no"), end


@BACKENDS
def test_an_output_does_not_end_before_its_form(made, thinker, backend):
    grammar = made(backend, is_open=True)
    for piece in ("yes", "</thin", "k>"):
        assert EOS not in allowed_by(grammar, len(thinker))
        take(grammar, thinker, [piece])
    assert ended(grammar, thinker) in ("yes", "no")


@BACKENDS
def test_a_token_that_goes_on_after_the_end_of_reasoning_may_not_be_drawn(made, thinker, backend):
    grammar = made(backend, is_open=True)
    assert "x</think>y" not in allowed_texts(grammar, thinker)
    take(grammar, thinker, ["yes", "k>{", "</thin"])
    allowed = allowed_texts(grammar, thinker)
    assert not {"k>{", "k>\n\n", "x</think>y"} & allowed and {"k>", "k", "yes"} <= allowed
    take(grammar, thinker, ["yes"])
    assert "k>{" in allowed_texts(grammar, thinker)


@BACKENDS
def test_an_opening_of_several_tokens_may_come_where_the_prompt_tells_of_it(made, thinker, backend):
    assert "H" not in allowed_texts(made(backend, is_open=False), thinker)
    grammar = made(backend, is_open=False, is_spelled=True, choice=["Hello", "no"])
    assert {"H", "<", "n"} <= allowed_texts(grammar, thinker)
    take(grammar, thinker, ["H", "e"])  # either of them
    allowed = allowed_texts(grammar, thinker)
    assert "r" in allowed and {"l", "ll"} & allowed
    take(grammar, thinker, ["r"])
    assert allowed_texts(grammar, thinker) <= {"e", "e is"}
    take(grammar, thinker, list("e"))
    rest = thinker.tokenize(" is my thought:")
    take(grammar, thinker, rest)
    take(grammar, thinker, ["H", "S", "o", ":", "H"])
    assert ended(grammar, thinker) == "ello"


@BACKENDS
def test_a_marker_that_the_prompt_is_cut_in_may_be_completed(made, thinker, backend):
    grammar = made(backend, is_open=True, begun="</thin")
    assert "k>{" not in allowed_texts(grammar, thinker)
    take(grammar, thinker, ["k>"])
    assert ended(grammar, thinker) in ("yes", "no")
    grammar = made(backend, is_open=True, begun="</thin")
    take(grammar, thinker, ["yes", "k>{"])
    assert "yes" in allowed_texts(grammar, thinker) and "n" in allowed_texts(grammar, thinker)
    for pieces in (["n", "k", ">", "yes", "</thin", "k>"], ["y"]):
        grammar = made(backend, is_open=False, is_spelled=True, begun="<thi")
        first = allowed_texts(grammar, thinker)
        assert {"n", "no", "y"} <= first and "<think>" not in first
        take(grammar, thinker, pieces)
        assert ended(grammar, thinker) in ("es", "yes", "no")


@BACKENDS
def test_a_form_that_begins_like_an_opening_goes_on_as_the_form(made, thinker, backend):
    grammar = made(backend, is_open=False, is_spelled=True, choice=["Here we go"])
    take(grammar, thinker, ["H", "e", "r"])
    assert not grammar.accept(thinker.convert_tokens_to_ids("x"))
    take(grammar, thinker, ["e"])
    take(grammar, thinker, thinker.tokenize(" we"))
    assert ended(grammar, thinker) == " go"


def test_markers_of_reasoning_are_not_a_request_s_to_say():
    with pytest.raises(ValueError, match="--reasoning-parser"):
        StructuredOutputsParams(choice=["yes"], reasoning={"starts": [], "ends": ["x"]})
