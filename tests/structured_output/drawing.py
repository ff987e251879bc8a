"""Texts drawn at random from what a grammar's masks allow."""

from __future__ import annotations

import random

from transformers import PreTrainedTokenizerBase

from tests.structured_output.conftest import EOS, allowed_by
from vllm.structured_output.grammar import Grammar


def random_text(
    grammar: Grammar, tokenizer: PreTrainedTokenizerBase, rng: random.Random, most: int = 400
) -> str | None:
    """Draws among what is allowed until the end; None if that did not come."""
    ids: list[int] = []
    while not grammar.finished and len(ids) < most:
        allowed = allowed_by(grammar, len(tokenizer)).tolist()
        assert allowed, tokenizer.decode(ids)
        token_id = EOS if EOS in allowed and rng.random() < 0.5 else rng.choice(allowed)
        assert grammar.accept(token_id)
        ids.append(token_id)
    return tokenizer.decode(ids[:-1]) if ids[-1] == EOS else None
