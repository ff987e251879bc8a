"""Adapter of llama.cpp: batches of all sequences at once, through its C interface.

What its own server does per slot is done here per sequence: tokens in the cache that a prompt
begins with are kept. A beginning that all prompts share is computed once and copied.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import llama_cpp as llama
import numpy as np

BATCH_TOKENS = 2048
MICRO_BATCH_TOKENS = 512
# More would be written to for nothing by a model whose cache is small.
MAX_CACHE_TOKENS = 65_536
# Copying a cache pays from about here.
MIN_SHARED_TOKENS = 64
GIB = 1 << 30
Row = tuple[int, int, int, bool]  # token, position, sequence, whether its logits are wanted


class Batch:
    """The arrays of a llama_batch, filled by NumPy."""

    def __init__(self) -> None:
        self.token = np.zeros(BATCH_TOKENS, np.int32)
        self.pos = np.zeros(BATCH_TOKENS, np.int32)
        self.counts = np.ones(BATCH_TOKENS, np.int32)
        self.seq = np.zeros(BATCH_TOKENS, np.int32)
        # The address of each element of `seq`: every token is in one sequence.
        step = self.seq.itemsize
        self.seq_at = self.seq.ctypes.data + step * np.arange(BATCH_TOKENS, dtype=np.uintp)
        self.logits = np.zeros(BATCH_TOKENS, np.int8)

    def fill(self, rows: list[Row]) -> Any:
        count = len(rows)
        columns = zip(*rows, strict=True)
        for array, column in zip(
            (self.token, self.pos, self.seq, self.logits), columns, strict=True
        ):
            array[:count] = column
        batch = llama.llama_batch()
        batch.n_tokens = count
        for name, array in (
            ("token", self.token),
            ("pos", self.pos),
            ("n_seq_id", self.counts),
            ("seq_id", self.seq_at),
            ("logits", self.logits),
        ):
            kind = dict(llama.llama_batch._fields_)[name]
            setattr(batch, name, ctypes.cast(array.ctypes.data, kind))
        return batch


class Engine:
    def __init__(self, settings: dict[str, Any]) -> None:
        config = json.loads((Path(settings["tokenizer"]) / "config.json").read_text())
        token_bytes = 4 * config["num_hidden_layers"] * config["num_key_value_heads"]
        token_bytes *= config["head_dim"]
        self.cache_tokens = min(settings["kv_gib"] * GIB // token_bytes, MAX_CACHE_TOKENS)
        self.max_model_len = settings["max_model_len"]
        self.threads = settings["threads"]
        self.vocab = config["vocab_size"]
        llama.llama_backend_init()
        params = llama.llama_model_default_params()
        params.n_gpu_layers = 0
        self.model = llama.llama_model_load_from_file(settings["model"].encode(), params)
        if not self.model:
            raise RuntimeError("llama.cpp cannot load the model")
        self.batch = Batch()
        self.context: Any = None
        self.cached: list[list[int]] = []  # tokens in the cache, per sequence

    def generate(self, prompts: list[list[int]], max_tokens: int) -> list[list[int]]:
        self._divide_cache(len(prompts))
        kept = self._reuse(prompts)
        outputs: list[list[int]] = [[] for _ in prompts]
        rows = [
            (token, at, number, at == len(prompt) - 1)
            for number, prompt in enumerate(prompts)
            for at, token in enumerate(prompt[kept[number] :], kept[number])
        ]
        for part in _parts(rows):
            self._decode(part, outputs)
        lengths = [len(prompt) for prompt in prompts]
        for step in range(max_tokens - 1):
            self._decode(
                [
                    (output[-1], lengths[number] + step, number, True)
                    for number, output in enumerate(outputs)
                ],
                outputs,
            )
        self.cached = [
            prompt + output[:-1] for prompt, output in zip(prompts, outputs, strict=True)
        ]
        return outputs

    def _divide_cache(self, num_sequences: int) -> None:
        """A context whose cache is cut in as many equal parts: sequences do not mask each other."""
        if self.context and len(self.cached) == num_sequences:
            return
        if self.context:
            llama.llama_free(self.context)
        each = min(self.cache_tokens // num_sequences, self.max_model_len)
        params = llama.llama_context_default_params()
        params.n_ctx = each * num_sequences
        params.n_seq_max = num_sequences
        params.n_batch = BATCH_TOKENS
        params.n_ubatch = MICRO_BATCH_TOKENS
        params.n_threads = params.n_threads_batch = self.threads
        params.kv_unified = False
        self.context = llama.llama_init_from_model(self.model, params)
        if not self.context:
            raise RuntimeError("llama.cpp cannot make a context")
        self.memory = llama.llama_get_memory(self.context)
        self.cached = [[] for _ in range(num_sequences)]

    def _reuse(self, prompts: list[list[int]]) -> list[int]:
        """Number of tokens of each prompt whose keys and values are in its sequence's cache."""
        kept = [
            min(_common(cached, prompt), len(prompt) - 1)
            for cached, prompt in zip(self.cached, prompts, strict=True)
        ]
        shared = min((_common(prompts[0], prompt) for prompt in prompts[1:]), default=0)
        if shared >= MIN_SHARED_TOKENS and min(kept) < shared:
            # Between parts of the cache only whole sequences can be copied.
            llama.llama_memory_clear(self.memory, False)
            rows = [(token, at, 0, False) for at, token in enumerate(prompts[0][:shared])]
            for part in _parts(rows):
                self._decode(part, [])
            for number in range(1, len(prompts)):
                llama.llama_memory_seq_cp(self.memory, 0, number, -1, -1)
            return [shared] * len(prompts)
        for number, count in enumerate(kept):
            llama.llama_memory_seq_rm(self.memory, number, count, -1)
        return kept

    def _decode(self, rows: list[Row], outputs: list[list[int]]) -> None:
        """Compute rows, and add the likeliest token to the output of each that wants logits."""
        status = llama.llama_decode(self.context, self.batch.fill(rows))
        if status:
            raise RuntimeError(f"llama_decode: status {status}")
        wanted = [sequence for _, _, sequence, is_wanted in rows if is_wanted]
        if wanted:
            logits = llama.llama_get_logits(self.context)
            table = np.ctypeslib.as_array(logits, shape=(len(wanted), self.vocab))
            for sequence, token in zip(wanted, table.argmax(axis=1).tolist(), strict=True):
                outputs[sequence].append(token)


def _parts(rows: list[Row]) -> Iterable[list[Row]]:
    return (rows[at : at + BATCH_TOKENS] for at in range(0, len(rows), BATCH_TOKENS))


def _common(left: list[int], right: list[int]) -> int:
    """Length of the beginning that two lists share."""
    for at, (one, other) in enumerate(zip(left, right, strict=False)):
        if one != other:
            return at
    return min(len(left), len(right))


def load(settings: dict[str, Any]) -> Engine:
    return Engine(settings)
