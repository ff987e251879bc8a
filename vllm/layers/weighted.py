"""A layer whose weight is a matrix, and the methods that store and multiply it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from vllm.layers.shapes import Piece
from vllm.layers.weights import Destination, Loadable, Target, parameter


class Weighted(Loadable):
    """A layer whose weight [num_outputs, num_inputs] a WeightMethod stores and multiplies."""

    is_gated = False  # the first half of the outputs are gates of the second half
    may_be_quantized = True  # False for tables that are looked up in
    may_stay_plain = False  # writers of quantized checkpoints differ on whether this is quantized
    method: WeightMethod  # chosen by the loader, see vllm.layers.schemes
    # A method that this layer needs for plain values, whatever the device's is.
    own_method: WeightMethod | None = None
    weight: Tensor
    scales: Tensor  # what methods that quantize have
    bias: Tensor | None
    # What gated layers have: the name of the activation, and [T, 2 * I] -> [T, I].
    act: str
    activate: Callable[[Tensor], Tensor]

    def __init__(self, num_outputs: int, num_inputs: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.num_outputs, self.num_inputs, self.dtype = num_outputs, num_inputs, dtype
        self.has_bias = False  # whether this rank adds one
        self.register_parameter("bias", None)

    @property
    def has_padding(self) -> bool:
        """Whether there are outputs that nothing fills; methods allocate them as zero."""
        return sum(piece.count for piece in self.pieces()) < self.num_outputs

    def pieces(self) -> Iterator[Piece]:
        """The matrices of the checkpoint that the weight consists of."""
        yield Piece((self.num_outputs, self.num_inputs), 0, self.num_outputs)

    def allocate(self, device: torch.device) -> None:
        super().allocate(device)
        self.method.allocate(self, device)
        if self.has_bias:
            self.bias = self.method.new_bias(self, device)

    def destinations(self) -> Iterator[Destination]:
        yield from self.method.destinations(self)
        yield from super().destinations()

    def finish(self) -> None:
        self.method.finish(self)


class WeightMethod(ABC):
    """How the weight of a projection is stored and multiplied.

    A method has no state of any layer; one object serves all layers of a kind.
    """

    @abstractmethod
    def allocate(self, layer: Weighted, device: torch.device) -> None:
        """Give `layer` its tensors: uninitialised, but for padding, which is zero."""

    @abstractmethod
    def destinations(self, layer: Weighted) -> Iterator[Destination]:
        """Where the checkpoint tensors of `layer` go, but for its bias."""

    def new_bias(self, layer: Weighted, device: torch.device) -> nn.Parameter:
        """Memory of what `apply` and `apply_gated` add, uninitialised."""
        return parameter((layer.num_outputs,), layer.dtype, device)

    def bias_target(self, layer: Weighted, first: int, count: int) -> Target:
        """What takes the bias of outputs [first, first + count)."""
        assert layer.bias is not None
        return layer.bias.data[first : first + count]

    def finish(self, layer: Weighted) -> None:
        """Bring what was filled into its layout; called each time all of it is filled."""

    @abstractmethod
    def apply(self, layer: Weighted, x: Tensor) -> Tensor:
        """x [T, num_inputs] -> [T, num_outputs], of x's dtype."""

    @abstractmethod
    def apply_gated(self, layer: Weighted, x: Tensor) -> Tensor:
        """x [T, num_inputs] -> act(gate) * up [T, num_outputs / 2]."""


class TableMethod(WeightMethod):
    """A method that also serves embeddings and heads."""

    @abstractmethod
    def look_up(self, layer: Weighted, ids: Tensor) -> Tensor:
        """Rows `ids` [T] of the weight -> [T, num_inputs]."""

    def scores(self, layer: Weighted, x: Tensor) -> Tensor:
        """As `apply`, in float32."""
        return self.apply(layer, x).float()

    def greatest(self, layer: Weighted, x: Tensor, outputs: int) -> tuple[Tensor, Tensor] | None:
        """Of the first `outputs` scores the greatest [T] float32, and what `ops.greatest` says of
        them, [T] int32. None: it takes the scores."""
        return None
