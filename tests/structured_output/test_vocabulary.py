"""A tokenizer may have more tokens than the model's vocabulary, or fewer."""

from __future__ import annotations

import random

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from tests.structured_output.conftest import EOS, allowed_by, can_be_whole, ready
from tests.structured_output.forms import FORMS, Form
from vllm.config.structured import StructuredOutputsConfig
from vllm.sampling_params import StructuredOutputsParams
from vllm.structured_output.compiler import GrammarCompiler


@pytest.fixture(scope="module", params=[-33, -1, 1, 40], ids="{:+}".format)
def other(request: pytest.FixtureRequest, tokenizer: PreTrainedTokenizerBase) -> GrammarCompiler:
    """For a model of so many tokens more than the tokenizer has."""
    return GrammarCompiler(
        StructuredOutputsConfig(), len(tokenizer) + request.param, {EOS}, lambda: tokenizer
    )


@pytest.mark.parametrize("backend", ["xgrammar", "guidance"])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_masks_are_those_of_equal_sizes_cut_to_the_model(
    form: Form,
    backend: str,
    other: GrammarCompiler,
    compiler: GrammarCompiler,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    params = form.structured(backend=backend)
    one, same = ready(other.submit(params)), ready(compiler.submit(params))
    vocab_size, rng = other.vocab_size, random.Random(2)
    for _ in range(12):
        mask = np.zeros(other.mask_words, np.int32)
        one.fill_mask(mask)
        bits = np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))
        allowed = allowed_by(same, len(tokenizer))
        bits = bits[bits < vocab_size]  # behind them nothing is read
        assert bits.tolist() == allowed[allowed < vocab_size].tolist()
        token_id = rng.choice(bits.tolist())
        assert one.accept(token_id) and same.accept(token_id)
        if token_id == EOS:
            break


def test_what_only_guidance_can_do_is_done(
    other: GrammarCompiler, tokenizer: PreTrainedTokenizerBase
) -> None:
    params = StructuredOutputsParams(json={"type": "integer", "multipleOf": 7})
    assert can_be_whole("14", ready(other.submit(params)), tokenizer)
