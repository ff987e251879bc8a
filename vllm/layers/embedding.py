"""Token and position embeddings, and the projection back to the vocabulary."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from vllm.layers.context import ModelContext
from vllm.layers.plain import Plain
from vllm.layers.shapes import Piece, VocabularyShare
from vllm.layers.weighted import TableMethod, Weighted


class Positions(Weighted):
    """Learned embeddings of positions, a table that every rank has: [T] -> [T, H]."""

    may_be_quantized = False
    method: TableMethod

    def __init__(self, rows: int, hidden: int, context: ModelContext) -> None:
        super().__init__(rows, hidden, context.dtype)
        self.own_method = Plain()

    def forward(self, positions: Tensor) -> Tensor:
        return self.method.look_up(self, positions)


class Vocabulary(Weighted):
    """A table with one row per token, of which a rank has some: looked up in, or multiplied."""

    method: TableMethod

    def __init__(self, rows: int, hidden: int, context: ModelContext) -> None:
        share = VocabularyShare.of(rows, context.shard)
        super().__init__(share.length, hidden, context.dtype)
        self.share = share
        self.is_whole = context.shard.size == 1
        self.tp = context.tp

    def pieces(self) -> Iterator[Piece]:
        return self.share.pieces(self.num_inputs)

    def look_up(self, ids: Tensor) -> Tensor:
        """ids [T] -> [T, H]"""
        if self.is_whole:
            return self.method.look_up(self, ids)
        rows = ids - self.share.first
        is_elsewhere = (rows < 0) | (rows >= self.share.length)
        found = self.method.look_up(self, rows.masked_fill(is_elsewhere, 0))
        return self.tp.sum(found.masked_fill(is_elsewhere.unsqueeze(-1), 0.0))

    def scores(self, hidden: Tensor) -> Tensor:
        """[S, H] -> [S, V] float32, of all tokens on every rank."""
        scores = self.method.scores(self, hidden)
        return scores if self.is_whole else self.tp.gather(scores)[:, : self.share.rows]

    def greatest(self, hidden: Tensor) -> Tensor | None:
        """The token of the greatest score of each row, [S] int32; None: it takes the scores."""
        if self.is_whole:
            found = self.method.greatest(self, hidden, self.num_outputs)
            return None if found is None else found[1]
        return self.tp.greatest(*self._own_greatest(hidden))

    def _own_greatest(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Of this rank's tokens the greatest score of each row, [S] float32, and the token [S]."""
        share = self.share
        if not share.present:
            none = torch.full((len(hidden),), -torch.inf, device=hidden.device)
            return none, none.new_zeros(len(hidden), dtype=torch.int32)
        found = self.method.greatest(self, hidden, share.present)
        if found is None:
            values, rows = self.method.scores(self, hidden)[:, : share.present].max(dim=-1)
            found = values, rows.int()
        return found[0], found[1] + share.first


class Embedding(Vocabulary):
    """ids [T] -> [T, H]"""

    may_be_quantized = False

    def __init__(self, rows: int, hidden: int, context: ModelContext) -> None:
        super().__init__(rows, hidden, context)
        # A table that is only looked up in stays as it is.
        self.own_method = Plain()

    def forward(self, ids: Tensor) -> Tensor:
        return self.look_up(ids)


class Head(Vocabulary):
    """Hidden states [S, H] -> scores of every token [S, V] in float32."""

    def forward(self, hidden: Tensor) -> Tensor:
        return self.scores(hidden)


class TiedHead(nn.Module):
    """A head that multiplies with the embedding's weight and has none of its own."""

    def __init__(self, embedding: Embedding) -> None:
        super().__init__()
        embedding.own_method = None  # it is multiplied as well
        # Methods, so that the embedding is not registered (and loaded) a second time.
        self.scores = embedding.scores
        self.greatest = embedding.greatest  # see Vocabulary

    def forward(self, hidden: Tensor) -> Tensor:
        return self.scores(hidden)
