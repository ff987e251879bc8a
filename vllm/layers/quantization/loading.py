"""The loading of encoded weights, whatever stores them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from vllm.layers.methods import ExpertWeights
from vllm.layers.quantization.encoding import EncodedTensor, Encoding, QuantizedPiece
from vllm.layers.shapes import Piece
from vllm.layers.weighted import Weighted
from vllm.layers.weights import ELSEWHERE, Destination, Target


class EncodedLoading:
    """Fills layers whose pieces come in `encoding`."""

    def __init__(self, encoding: Encoding) -> None:
        self.encoding = encoding

    def destinations(self, layer: Weighted | ExpertWeights) -> Iterator[Destination]:
        """A place on the host for each tensor of each piece."""
        for piece in layer.pieces():
            for tensor in self.encoding.tensors(piece):
                yield Destination(
                    piece.prefix + tensor.name,
                    _Staged(layer, (piece.prefix, piece.part, piece.expert, tensor.name), tensor)
                    if piece.count
                    else ELSEWHERE,
                    tensor.shape,
                    piece.part,
                    piece.expert,
                    share=tensor.share,
                    dtypes=tensor.dtypes,
                    stack_dim=tensor.stack_dim,
                    random=tensor.random,
                )

    def decoded(self, layer: Weighted | ExpertWeights) -> Iterator[tuple[Piece, QuantizedPiece]]:
        """What was filled, piece by piece; gives up the memory of each."""
        for piece in layer.pieces():
            if not piece.count:
                continue
            loaded = {
                tensor.name: layer.unstage((piece.prefix, piece.part, piece.expert, tensor.name))
                for tensor in self.encoding.tensors(piece)
            }
            yield piece, self.encoding.decode(loaded, piece)


@dataclass(frozen=True, slots=True)
class _Staged:
    """Opens the staging memory of one tensor, in the dtype that comes."""

    layer: Weighted | ExpertWeights
    key: tuple[str, str, int, str]
    tensor: EncodedTensor

    def __call__(self) -> Target:
        return self

    def copy_(self, source: Tensor, /) -> None:
        shape = self.tensor.share.shape(self.tensor.shape)
        self.layer.stage(self.key, shape, source.dtype).copy_(source)
