"""Token and position embeddings, and the projection back to the vocabulary."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from vllm.layers.context import ModelContext
from vllm.layers.weights import Loadable


class Embedding(Loadable):
    """Row lookup: ids [T] -> [T, H]."""

    def __init__(self, rows: int, hidden: int, context: ModelContext) -> None:
        super().__init__()
        self.weight = context.parameter(rows, hidden)

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight)


class Head(Loadable):
    """Hidden states [S, H] -> scores of every token [S, V]."""

    def __init__(self, rows: int, hidden: int, context: ModelContext) -> None:
        super().__init__()
        self.weight = context.parameter(rows, hidden)

    def forward(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.weight)


class TiedHead(Loadable):
    """A head that multiplies with the embedding's weight and has none of its own."""

    def __init__(self, embedding: Embedding) -> None:
        super().__init__()
        # In a tuple, so that the parameter is not registered (and loaded) a second time.
        self._embedding = (embedding,)

    def forward(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self._embedding[0].weight)
