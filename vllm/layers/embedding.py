"""Token and position embeddings, and the projection back to the vocabulary."""

from __future__ import annotations

from torch import Tensor, nn

from vllm.layers.context import ModelContext
from vllm.layers.methods import TableMethod
from vllm.layers.plain import Plain
from vllm.layers.weights import Weighted


class Embedding(Weighted):
    """Row lookup: ids [T] -> [T, H]."""

    is_linear = False
    method: TableMethod

    def __init__(self, rows: int, hidden: int, context: ModelContext) -> None:
        super().__init__(rows, hidden, context.dtype)
        # A table that is only looked up in stays as it is.
        self.own_method = Plain()

    def forward(self, ids: Tensor) -> Tensor:
        return self.method.look_up(self, ids)


class Head(Weighted):
    """Hidden states [S, H] -> scores of every token [S, V] in float32."""

    method: TableMethod

    def __init__(self, rows: int, hidden: int, context: ModelContext) -> None:
        super().__init__(rows, hidden, context.dtype)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.method.scores(self, hidden)

    def greatest(self, hidden: Tensor) -> Tensor | None:
        """The token of the greatest score of each row, [S] int32; None: it takes the scores."""
        return self.method.greatest(self, hidden)


class TiedHead(nn.Module):
    """A head that multiplies with the embedding's weight and has none of its own."""

    def __init__(self, embedding: Embedding) -> None:
        super().__init__()
        # In a tuple, so that the embedding is not registered (and loaded) a second time.
        self._embedding = (embedding,)
        embedding.own_method = None  # it is multiplied as well

    def forward(self, hidden: Tensor) -> Tensor:
        (embedding,) = self._embedding
        return embedding.method.scores(embedding, hidden)

    def greatest(self, hidden: Tensor) -> Tensor | None:
        """As of Head."""
        (embedding,) = self._embedding
        return embedding.method.greatest(embedding, hidden)
