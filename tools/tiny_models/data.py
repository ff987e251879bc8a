"""From documents to tokens: rendering, loss weights and packed training batches."""

from collections.abc import Iterator
from itertools import islice

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from tools.tiny_models.corpus import Document, Plain, documents
from tools.tiny_models.tokenizer import EOS, SPECIAL_TOKENS, TURN_END_ID, TURN_START_ID, VOCAB_SIZE

# What others say is not what the model has to learn to say, but it helps to know the words.
PROMPT_WEIGHT = 0.2
BYTES_END = len(SPECIAL_TOKENS) + 256  # first id that is a merge


def render(tokenizer: PreTrainedTokenizerFast, document: Document) -> str:
    """The whole text of a document, special tokens included."""
    if isinstance(document, Plain):
        return f"{tokenizer.bos_token}{document.text}{EOS}"
    text = tokenizer.apply_chat_template(
        document.messages, tools=document.tools or None, tokenize=False
    )
    assert isinstance(text, str)
    return text


def answer_mask(ids: np.ndarray, assistant_id: int) -> np.ndarray:
    """Which tokens of a rendered conversation the assistant wrote, ends of turn included.

    Args:
        ids: tokens of one document; without turns, all but the first count as written.
    """
    starts = np.flatnonzero(ids == TURN_START_ID)
    mask = np.zeros(len(ids), dtype=bool)
    if len(starts) == 0:
        mask[1:] = True
        return mask
    ends = np.flatnonzero(ids == TURN_END_ID)
    for start, end in zip(starts, ends, strict=True):
        if ids[start + 1] == assistant_id:
            mask[start + 3 : end + 1] = True  # after the start token, the role and its newline
    return mask


class TokenStream:
    """Documents of one seed as an endless row of tokens, read batch by batch.

    No text is read twice, so a model sees every document once.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, seed: int) -> None:
        self._tokenizer = tokenizer
        self._documents = documents(seed)
        self._assistant_id = role_id(tokenizer)
        self._ids = np.zeros(0, dtype=np.int64)
        self._weights = np.zeros(0, dtype=np.float32)

    def take(self, rows: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The next ids and loss weights, both of shape [rows, length]."""
        count = rows * length
        while len(self._ids) < count:
            self._fill()
        ids, self._ids = self._ids[:count], self._ids[count:]
        weights, self._weights = self._weights[:count], self._weights[count:]
        shape = (rows, length)
        return torch.from_numpy(ids.reshape(shape)), torch.from_numpy(weights.reshape(shape))

    def _fill(self) -> None:
        texts = [render(self._tokenizer, d) for d in islice(self._documents, 500)]
        encoded = self._tokenizer(texts, add_special_tokens=False)["input_ids"]
        ids = [np.asarray(row, dtype=np.int64) for row in encoded]
        weights = [
            np.where(answer_mask(row, self._assistant_id), 1.0, PROMPT_WEIGHT).astype(np.float32)
            for row in ids
        ]
        self._ids = np.concatenate([self._ids, *ids])
        self._weights = np.concatenate([self._weights, *weights])


def copying_rows(
    rows: int, length: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows in which a run of random tokens repeats; ids and loss weights of shape [rows, length].

    Only the repetitions count. Predicting them takes nothing but looking back for what followed the
    last time, which is what keeps the names in a story straight. Text alone teaches it late: it was
    absent after 2.4 million tokens.
    """
    ids = torch.empty(rows, length, dtype=torch.int64)
    weights = torch.ones(rows, length)
    for row in range(rows):
        period = int(torch.randint(4, 65, (1,), generator=generator))
        run = torch.randint(BYTES_END, VOCAB_SIZE, (period,), generator=generator)
        ids[row] = run.repeat(-(-length // period))[:length]
        weights[row, : period + 1] = 0.0
    return ids, weights


def role_id(tokenizer: PreTrainedTokenizerFast) -> int:
    """The token that names the assistant at the start of its turns."""
    ids = tokenizer("assistant", add_special_tokens=False)["input_ids"]
    assert len(ids) == 1, ids
    return ids[0]


def held_out(
    tokenizer: PreTrainedTokenizerFast, seed: int, count: int, plain: bool
) -> Iterator[np.ndarray]:
    """Tokens of `count` documents of a held-out stream: stories if `plain`, else conversations."""
    chosen = (d for d in documents(seed) if isinstance(d, Plain) == plain)
    for document in islice(chosen, count):
        text = render(tokenizer, document)
        yield np.asarray(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=np.int64)
