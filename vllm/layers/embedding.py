"""Token and position embeddings, and the projection back to the vocabulary."""

from __future__ import annotations

from torch import Tensor

from vllm.layers.context import ModelContext
from vllm.layers.linear import Weighted
from vllm.layers.methods import LinearMethod, Unquantized
from vllm.layers.weights import Loadable


class Embedding(Weighted):
    """Row lookup: ids [T] -> [T, H]."""

    def __init__(self, rows: int, hidden: int, context: ModelContext) -> None:
        super().__init__()
        self.weight = context.parameter(rows, hidden)
        self.bias = None
        # A table that is only looked up in stays as it is.
        self.method: LinearMethod = Unquantized()

    def forward(self, ids: Tensor) -> Tensor:
        return self.method.look_up(self, ids)


class Head(Weighted):
    """Hidden states [S, H] -> scores of every token [S, V] in float32."""

    def __init__(self, rows: int, hidden: int, context: ModelContext) -> None:
        super().__init__()
        self.weight = context.parameter(rows, hidden)
        self.bias = None
        self.method = context.linear_method

    def finish(self) -> None:
        self.method.finish(self)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.method.apply(self, hidden, wide=True)


class TiedHead(Loadable):
    """A head that multiplies with the embedding's weight and has none of its own."""

    def __init__(self, embedding: Embedding, context: ModelContext) -> None:
        super().__init__()
        # In a tuple, so that the parameter is not registered (and loaded) a second time.
        self._embedding = (embedding,)
        self.method = embedding.method = context.linear_method

    def finish(self) -> None:
        self.method.finish(self._embedding[0])

    def forward(self, hidden: Tensor) -> Tensor:
        return self.method.apply(self._embedding[0], hidden, wide=True)
