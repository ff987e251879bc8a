"""One tokenizer and one compiler for all tests of forms, and what drives a grammar."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from vllm.config.structured import StructuredOutputsConfig
from vllm.structured_output.compiler import GrammarCompiler, PendingGrammar
from vllm.structured_output.grammar import Grammar

EOS = 1


@pytest.fixture(scope="session")
def tokenizer(tiny_story: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny_story)


@pytest.fixture(scope="session")
def compiler(tokenizer: PreTrainedTokenizerBase) -> GrammarCompiler:
    return GrammarCompiler(StructuredOutputsConfig(), len(tokenizer), {EOS}, lambda: tokenizer)


def ready(pending: PendingGrammar) -> Grammar:
    """Raises GrammarError."""
    while (grammar := pending.poll()) is None:
        time.sleep(0.001)
    return grammar


def allowed_by(grammar: Grammar, vocab_size: int) -> np.ndarray:
    mask = np.zeros(-(-vocab_size // 32), np.int32)
    grammar.fill_mask(mask)
    bits = np.unpackbits(mask.view(np.uint8), bitorder="little")[:vocab_size]
    return np.flatnonzero(bits)


def can_be_whole(text: str, grammar: Grammar, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a text may come, and end there."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text
    return all(map(grammar.accept, [*ids, EOS]))
