"""Runs a model without an engine: plays scheduler and slots, builds the attention metadata."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from vllm.config.vllm import VllmConfig
from vllm.device.attention import PagedMeta
from vllm.device.launch import ForwardInputs, StageInputs, TokenInputs
from vllm.engine.arg_utils import EngineArgs
from vllm.models.interfaces import Model

BLOCK_SIZE = 16


def config_for(path: Path, **settings: object) -> VllmConfig:
    """The configuration of an engine that would serve the checkpoint, in float32."""
    defaults = {
        "dtype": "float32",
        "max_model_len": 256,
        "block_size": BLOCK_SIZE,
        "use_tqdm_on_load": False,
        "skip_tokenizer_init": True,
    }
    return EngineArgs(str(path), **{**defaults, **settings}).create_engine_config()


class Harness:
    """Sequences in a paged cache; blocks of a sequence are scattered, one KV group per spec."""

    def __init__(self, model: Model, num_sequences: int, max_tokens: int = 128) -> None:
        self.model = model
        self.tokens: list[list[int]] = [[] for _ in range(num_sequences)]
        self.computed = [0] * num_sequences
        width = -(-max_tokens // BLOCK_SIZE)
        num_blocks = 1 + num_sequences * width
        order = torch.randperm(num_blocks - 1, generator=torch.Generator().manual_seed(0)) + 1
        layers = model.attention_layers().values()
        specs = list(dict.fromkeys(layer.kv_spec() for layer in layers))
        # A group reads another part of the table, so that a layer using the wrong one is noticed.
        self.tables = [
            order.roll(i).view(num_sequences, width).to(torch.int32) for i in range(len(specs))
        ]
        for layer in layers:
            shape = layer.backend.kv_shape(layer.kv_spec(), num_blocks)
            layer.bind(
                torch.full(shape, float("nan"), dtype=layer.spec.dtype),
                specs.index(layer.kv_spec()),
            )

    def add(self, row: int, tokens: Sequence[int]) -> None:
        self.tokens[row].extend(tokens)

    def step(self, counts: Sequence[int], received: Tensor | None = None) -> Tensor:
        """Compute the next counts[r] tokens of each row, 0 for none; hidden states [T, H].

        `received`: those of the pipeline stage before, if the model is a stage after the first.
        """
        rows = [r for r, count in enumerate(counts) if count]
        ids, positions = [], []
        for r in rows:
            span = range(self.computed[r], self.computed[r] + counts[r])
            ids += [self.tokens[r][i] for i in span]
            positions += span
            self.computed[r] += counts[r]
        where = torch.tensor(positions, dtype=torch.int32)
        inputs: ForwardInputs = TokenInputs(torch.tensor(ids, dtype=torch.int32), where)
        if received is not None:
            inputs = StageInputs(received, where)
        metas = [self._meta(rows, counts, positions, table) for table in self.tables]
        with torch.no_grad():
            return self.model(inputs, metas)

    def _meta(
        self, rows: list[int], counts: Sequence[int], positions: list[int], table: Tensor
    ) -> PagedMeta:
        lengths = torch.tensor([counts[r] for r in rows], dtype=torch.int32)
        starts = torch.zeros(len(rows) + 1, dtype=torch.int32)
        starts[1:] = lengths.cumsum(0)
        owners = torch.repeat_interleave(torch.tensor(rows), lengths)
        where = torch.tensor(positions)
        blocks = table[owners, where // BLOCK_SIZE].long()
        seq_lens = torch.tensor([self.computed[r] for r in rows], dtype=torch.int32)
        return PagedMeta(
            query_start=starts,
            seq_lens=seq_lens,
            block_table=table[rows],
            slot_mapping=blocks * BLOCK_SIZE + where % BLOCK_SIZE,
            max_query_len=int(lengths.max()),
            max_seq_len=int(seq_lens.max()),
        )
