"""What a format of quantization puts into a checkpoint for one matrix."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vllm.layers.methods import ExpertWeights
from vllm.layers.shapes import Piece
from vllm.layers.weights import ELSEWHERE, Destination, Random, Target, Weighted


@dataclass(frozen=True, slots=True)
class EncodedTensor:
    """One tensor of an encoded piece. Sharding and stacking are as of `Destination`."""

    name: str
    shape: tuple[int, ...]
    dtypes: tuple[torch.dtype, ...]
    random: Random
    dim: int = -1
    start: int = 0
    length: int = 0
    stack_dim: int = 0

    @property
    def local_shape(self) -> tuple[int, ...]:
        if self.dim < 0:
            return self.shape
        return (*self.shape[: self.dim], self.length, *self.shape[self.dim + 1 :])


@dataclass(frozen=True, slots=True)
class QuantizedPiece:
    """A matrix in the one form that methods store, whatever encoding it came in.

    Element [o, i] is values[o, i] * scales[o, 0].
    """

    values: Tensor  # [outputs, inputs] int8 or float8
    scales: Tensor  # [outputs, 1] of a plain dtype

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """[outputs, inputs] in `dtype`."""
        return self.values.to(dtype) * self.scales.to(dtype)


class Encoding(ABC):
    """What a checkpoint holds instead of one plain matrix."""

    values_dtype: torch.dtype  # of QuantizedPiece.values

    @abstractmethod
    def tensors(self, piece: Piece) -> tuple[EncodedTensor, ...]:
        """The tensors that encode `piece`."""

    @abstractmethod
    def decode(self, loaded: Mapping[str, Tensor], piece: Piece) -> QuantizedPiece:
        """This rank's share of `piece` from its tensors by name. Raises LoadError."""


class EncodedLoading:
    """The loading of layers whose pieces come in an encoding, whatever stores them."""

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
                    tensor.dim,
                    tensor.start,
                    tensor.length,
                    tensor.dtypes,
                    tensor.stack_dim,
                    tensor.random,
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
        self.layer.stage(self.key, self.tensor.local_shape, source.dtype).copy_(source)
