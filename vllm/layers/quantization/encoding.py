"""What a format of quantization puts into a checkpoint for one matrix."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vllm.layers.shapes import EVERYTHING, Piece, Share
from vllm.layers.weights import Random


@dataclass(frozen=True, slots=True)
class EncodedTensor:
    """One tensor of an encoded piece. The fields mean what they mean in `Destination`."""

    name: str
    shape: tuple[int, ...]
    dtypes: tuple[torch.dtype, ...]
    random: Random
    share: Share = EVERYTHING
    stack_dim: int = 0


@dataclass(frozen=True, slots=True)
class QuantizedPiece:
    """A matrix in the one form that methods store, whatever encoding it came in.

    Element [o, i] is values[o, i] * scales[o, 0].
    """

    values: Tensor  # [outputs, inputs] int8 or float8
    scales: Tensor  # [outputs, 1] of a plain dtype

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """[outputs, inputs] in `dtype`, rounded once."""
        return (self.values.float() * self.scales.float()).to(dtype)


class Encoding(ABC):
    """What a checkpoint holds instead of one plain matrix. Hashable: equal ones share methods."""

    values_dtype: ClassVar[torch.dtype]  # of QuantizedPiece.values

    @abstractmethod
    def tensors(self, piece: Piece) -> tuple[EncodedTensor, ...]:
        """The tensors that encode `piece`. Raises ConfigError if ranks cannot share them so."""

    @abstractmethod
    def decode(self, loaded: Mapping[str, Tensor], piece: Piece) -> QuantizedPiece:
        """This rank's share of `piece` from its tensors by name. Raises LoadError."""
