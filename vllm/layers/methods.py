"""How weights are stored and multiplied: the place of packing and of quantization."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from vllm.layers.shapes import Piece
from vllm.layers.weighted import TableMethod
from vllm.layers.weights import Destination

if TYPE_CHECKING:
    from vllm.layers.quantization.encoding import Encoding


class ExpertWeights(Protocol):
    """What a method needs of a layer of gated experts. The tensors are the method's.

    Piece by piece, an expert is gate and up [width, hidden] of w13, and down [hidden, width] of w2.
    """

    num_experts: int  # of this rank
    hidden: int
    width: int  # of this rank
    dtype: torch.dtype
    act: str
    w13: Tensor
    w2: Tensor
    w13_scales: Tensor
    w2_scales: Tensor

    def pieces(self) -> Iterator[Piece]: ...

    def stage(self, key: Hashable, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor: ...

    def unstage(self, key: Hashable) -> Tensor: ...


class ExpertsMethod(ABC):
    """How the weights of experts are stored and multiplied. Has no state of any layer."""

    @abstractmethod
    def allocate(self, layer: ExpertWeights, device: torch.device) -> None:
        """Give `layer` its tensors, uninitialised, each [experts of this rank, ...].

        Experts move by rows of these tensors.
        """

    @abstractmethod
    def destinations(self, layer: ExpertWeights) -> Iterator[Destination]:
        """Where the checkpoint tensors of `layer` go."""

    def finish(self, layer: ExpertWeights) -> None:
        """Bring what was filled into its layout; called each time all of it is filled."""

    @abstractmethod
    def apply(self, layer: ExpertWeights, x: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
        """x [T, H], weights and local ids [T, k] -> [T, H].

        A choice with the id -1 adds nothing: another rank has the expert.
        """


@dataclass(frozen=True, slots=True)
class DeviceMethods:
    """How one device stores and multiplies weights: plain ones, and of any encoding."""

    plain: TableMethod
    plain_experts: ExpertsMethod
    quantized: Callable[[Encoding], TableMethod]
    quantized_experts: Callable[[Encoding], ExpertsMethod]
