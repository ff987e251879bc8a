"""Which method stores and multiplies the weight of which layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vllm.layers.methods import DeviceMethods, ExpertsMethod
from vllm.layers.moe import Experts
from vllm.layers.plain import Plain
from vllm.layers.quantization.encoding import Encoding
from vllm.layers.quantization.reference import DequantizedAtLoad
from vllm.layers.shapes import Piece
from vllm.layers.weighted import Weighted, WeightMethod


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a scheme may ask about the files that a model is read from."""

    # Names, without ".weight", that a piece of the layer at a path may have there.
    modules: Callable[[str, Piece], Sequence[str]]
    holds: Callable[[str], bool]  # whether there is a tensor of this name


class Scheme:
    """Chooses by the path of a layer, "layers.0.attention.qkv", before there is memory.

    This one leaves all weights plain; a format of quantization says which layers are encoded.
    """

    def __init__(self, methods: DeviceMethods) -> None:
        self._methods = methods
        self._quantized: dict[Encoding, WeightMethod] = {}
        self._quantized_experts: dict[Encoding, ExpertsMethod] = {}

    def encoding_of(self, path: str, layer: Weighted | Experts) -> Encoding | None:
        """What the checkpoint holds for `layer`; None: plain values. Raises ConfigError."""
        return None

    def weights(self, path: str, layer: Weighted) -> WeightMethod:
        """The method of `layer`. Raises ConfigError."""
        encoding = self.encoding_of(path, layer) if layer.may_be_quantized else None
        if encoding is None:
            return layer.own_method or self._methods.plain
        _check(encoding, layer)
        if layer.own_method is not None:
            assert isinstance(layer.own_method, Plain), layer.own_method
            return DequantizedAtLoad(encoding, layer.own_method)
        if encoding not in self._quantized:
            self._quantized[encoding] = self._methods.quantized(encoding)
        return self._quantized[encoding]

    def experts(self, path: str, layer: Experts) -> ExpertsMethod:
        """The method of `layer`. Raises ConfigError."""
        encoding = self.encoding_of(path, layer)
        if encoding is None:
            return self._methods.plain_experts
        _check(encoding, layer)
        if encoding not in self._quantized_experts:
            self._quantized_experts[encoding] = self._methods.quantized_experts(encoding)
        return self._quantized_experts[encoding]


def _check(encoding: Encoding, layer: Weighted | Experts) -> None:
    """Raises ConfigError now, not when memory has been taken, if ranks cannot share `layer`."""
    for piece in layer.pieces():
        encoding.tensors(piece)
