"""What a format of quantization puts into a checkpoint for one matrix."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vllm.layers.shapes import Piece
from vllm.layers.weights import Random


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
