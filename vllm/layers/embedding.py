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
        self.bias = None
        # A table that is only looked up in stays as it is.
        self.method = Unquantized()
        self.method.allocate(self, rows, hidden, context)

    def store_by(self, method: LinearMethod, context: ModelContext) -> None:
        """Use another method; before anything is loaded."""
        del self.weight  # first, or a device would have to hold it twice
        self.method = method
        method.allocate(self, self.num_outputs, self.num_inputs, context)

    def forward(self, ids: Tensor) -> Tensor:
        return self.method.look_up(self, ids)


class Head(Weighted):
    """Hidden states [S, H] -> scores of every token [S, V] in float32."""

    def __init__(self, rows: int, hidden: int, context: ModelContext) -> None:
        super().__init__()
        self.bias = None
        self.method = context.linear_method
        self.method.allocate(self, rows, hidden, context)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.method.apply(self, hidden, wide=True)

    def greatest(self, hidden: Tensor) -> Tensor | None:
        """The token of the greatest score of each row, [S] int32; None: it takes the scores."""
        return self.method.greatest(self, hidden)


class TiedHead(Loadable):
    """A head that multiplies with the embedding's weight and has none of its own."""

    def __init__(self, embedding: Embedding, context: ModelContext) -> None:
        super().__init__()
        # In a tuple, so that the parameter is not registered (and loaded) a second time.
        self._embedding = (embedding,)
        self.method = context.linear_method
        embedding.store_by(self.method, context)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.method.apply(self._embedding[0], hidden, wide=True)

    def greatest(self, hidden: Tensor) -> Tensor | None:
        """As of Head."""
        return self.method.greatest(self._embedding[0], hidden)
