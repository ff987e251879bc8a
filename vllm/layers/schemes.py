"""Which method stores and multiplies the weight of which layer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from vllm.layers.methods import DeviceMethods, ExpertsMethod
from vllm.layers.moe import Experts
from vllm.layers.shapes import Piece
from vllm.layers.weighted import Weighted, WeightMethod

# Names under which a checkpoint may hold a piece of the layer at a path, without ".weight".
Names = Callable[[str, Piece], Sequence[str]]


class Scheme(ABC):
    """Chooses by the path of a layer, "layers.0.attention.qkv", before there is memory."""

    @abstractmethod
    def weights(self, path: str, layer: Weighted) -> WeightMethod: ...

    @abstractmethod
    def experts(self, path: str, layer: Experts) -> ExpertsMethod: ...


class Unquantized(Scheme):
    """Plain values everywhere."""

    def __init__(self, methods: DeviceMethods) -> None:
        self._methods = methods

    def weights(self, path: str, layer: Weighted) -> WeightMethod:
        return layer.own_method or self._methods.plain

    def experts(self, path: str, layer: Experts) -> ExpertsMethod:
        return self._methods.plain_experts
