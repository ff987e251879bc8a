"""Special tokens are no part of an output's text, and so of no form."""

from __future__ import annotations

import json
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from tests.structured_output.conftest import EOS, allowed_by, ready
from vllm.sampling_params import StructuredOutputsParams
from vllm.structured_output.compiler import GrammarCompiler
from vllm.transformers_utils.detokenizer import special_ids

MARKER = "<|im_start|>"
END = "<|end_of_text|>"
ANY_TEXT = 'root ::= "a" [^b]*'
NAMING = f'root ::= "{MARKER}" [a-z]* | "<|pad|" ">"'
TAG = {
    "type": "structural_tag",
    "structures": [{"begin": MARKER, "schema": {"type": "integer"}, "end": "<|pad|>"}],
    "triggers": [MARKER],
}


def pieces(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens of a text that are none of the special ones it spells."""
    ids: list[int] = []
    for part in text.replace("<|", "<\0|").split("\0"):
        ids += tokenizer.encode(part, add_special_tokens=False)
    return ids


@pytest.mark.parametrize("backend", ["xgrammar", "guidance"])
@pytest.mark.parametrize(
    ("form", "text"),
    [
        ({"json": {"type": "string"}}, f'"{MARKER}"'),
        ({"json": {"type": "string", "pattern": "^<.*>$"}}, f'"{MARKER}"'),
        ({"json": {"enum": [MARKER, "b"]}}, f'"{MARKER}"'),
        ({"json_object": True}, f'{{"{MARKER}": "{MARKER}"}}'),
        ({"regex": "<.*"}, MARKER),
        ({"choice": [MARKER, "b"]}, MARKER),
        # Nothing else could come.
        ({"choice": [MARKER]}, MARKER),
        ({"choice": [END]}, END),
        ({"json": {"const": MARKER}}, f'"{MARKER}"'),
        ({"regex": r"<\|im_start\|>"}, MARKER),
        ({"grammar": f'root ::= "a" "{END}"'}, f"a{END}"),
        ({"grammar": ANY_TEXT}, f"a{MARKER}"),
    ],
    ids=str,
)
def test_their_texts_are_written_in_other_tokens(
    form: dict[str, Any],
    text: str,
    backend: str,
    compiler: GrammarCompiler,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    special = special_ids(tokenizer)
    assert len(special) > 3
    grammar = ready(compiler.submit(StructuredOutputsParams(**form, backend=backend)))
    for token_id in [*pieces(text, tokenizer), EOS]:
        allowed = set(allowed_by(grammar, len(tokenizer)).tolist())
        assert allowed & special <= {EOS}
        assert token_id in allowed
        assert grammar.accept(token_id)


@pytest.mark.parametrize("form", [{"grammar": NAMING}, {"structural_tag": json.dumps(TAG)}])
def test_markers_that_a_grammar_or_a_tag_names_may_be_drawn(
    form: dict[str, Any], compiler: GrammarCompiler, tokenizer: PreTrainedTokenizerBase
) -> None:
    """As by models whose calls are marked by them."""
    marker = tokenizer.convert_tokens_to_ids(MARKER)
    grammar = ready(compiler.submit(StructuredOutputsParams(**form)))
    assert marker in allowed_by(grammar, len(tokenizer))
    assert grammar.accept(marker)
