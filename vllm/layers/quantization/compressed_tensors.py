"""The format of the compressed-tensors library, as llm-compressor writes it.

Supported: 8 bits per weight with one scale per output channel, integers packed in int32
("pack-quantized") or float8 as it is ("naive-quantized", "float-quantized"), multiplied by
activations that are not quantized. Field names: docs of compressed-tensors 0.19.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

import torch
from torch import Tensor

from vllm.errors import ConfigError, LoadError
from vllm.layers.methods import DeviceMethods, ExpertsMethod
from vllm.layers.moe import Experts
from vllm.layers.plain import Plain
from vllm.layers.quantization.encoding import EncodedTensor, Encoding, QuantizedPiece
from vllm.layers.quantization.reference import Decoding
from vllm.layers.schemes import Names, Scheme, Unquantized
from vllm.layers.shapes import Piece
from vllm.layers.weighted import Weighted, WeightMethod
from vllm.layers.weights import PLAIN_DTYPES, WHOLE, random_weights

SUPPORTED: Final = (
    "8-bit weights with one scale per channel and activations that are not quantized: "
    "num_bits 8, strategy 'channel', symmetric, input_activations null, in format "
    "'pack-quantized' (type 'int') or 'naive-quantized' (type 'float')"
)
_PER_INT32 = 4  # 8-bit values
_TYPICAL = 64.0  # size of a random 8-bit value


class ChannelFloat8(Encoding):
    """weight [out, in] float8 and weight_scale [out, 1]."""

    values_dtype = torch.float8_e4m3fn

    def tensors(self, piece: Piece) -> tuple[EncodedTensor, ...]:
        values = EncodedTensor(
            "weight",
            piece.shape,
            (self.values_dtype,),
            lambda shape, generator: torch.randn(shape, generator=generator).to(self.values_dtype),
            piece.dim,
            piece.start,
            piece.length,
        )
        return values, _scales(piece)

    def decode(self, loaded: Mapping[str, Tensor], piece: Piece) -> QuantizedPiece:
        return QuantizedPiece(loaded["weight"], loaded["weight_scale"])


class PackedChannelInt8(Encoding):
    """weight_packed [out, in / 4] int32, weight_scale [out, 1], weight_shape [2] = (out, in).

    An int32 holds four neighbouring inputs, the first in its lowest bits, each plus 128.
    """

    values_dtype = torch.int8

    def tensors(self, piece: Piece) -> tuple[EncodedTensor, ...]:
        outputs, inputs = piece.shape
        start, length = piece.start, piece.length
        if piece.dim == 1:
            if start % _PER_INT32 or length % _PER_INT32:
                raise ConfigError(
                    f"a weight with {inputs} inputs is packed in fours, and a rank's {length} of "
                    "them are no multiple of 4: choose a smaller --tensor-parallel-size"
                )
            start, length = start // _PER_INT32, length // _PER_INT32
        packed = (outputs, -(-inputs // _PER_INT32))
        return (
            EncodedTensor(
                "weight_packed", packed, (torch.int32,), _random_int32, piece.dim, start, length
            ),
            _scales(piece),
            EncodedTensor(
                "weight_shape",
                (2,),
                (torch.int64, torch.int32),
                lambda *_: torch.tensor(piece.shape),
                stack_dim=WHOLE,
            ),
        )

    def decode(self, loaded: Mapping[str, Tensor], piece: Piece) -> QuantizedPiece:
        inputs = int(loaded["weight_shape"][1])  # outputs may be those of several parts
        if inputs != piece.shape[1]:
            raise LoadError(
                f"a packed weight has {inputs} inputs by its weight_shape, but by config.json it "
                f"has {piece.shape[1]}. The checkpoint and its config do not belong together."
            )
        packed = loaded["weight_packed"]
        shifts = torch.arange(0, 32, 8, dtype=torch.int32)
        unsigned = (packed.unsqueeze(-1) >> shifts) & 0xFF  # [out, in / 4, 4]
        values = (unsigned - 128).to(torch.int8).flatten(1)[:, : piece.local_shape[1]]
        return QuantizedPiece(values, loaded["weight_scale"])


def _scales(piece: Piece) -> EncodedTensor:
    dim = 0 if piece.dim == 0 else -1
    return EncodedTensor(
        "weight_scale",
        (piece.shape[0], 1),
        PLAIN_DTYPES,
        lambda shape, generator: random_weights(shape, generator) / _TYPICAL,
        dim,
        piece.start,
        piece.length,
    )


def _random_int32(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    limits = torch.iinfo(torch.int32)
    return torch.randint(limits.min, limits.max, shape, dtype=torch.int32, generator=generator)


class CompressedTensors(Scheme):
    """Linear layers and experts in the encoding of their group, all others plain."""

    def __init__(self, methods: DeviceMethods, names: Names, facts: Mapping[str, Any]) -> None:
        """`facts` is `quantization_config` of config.json. Raises ConfigError."""
        self._plain = Unquantized(methods)
        self._names = names
        self._ignored = tuple(facts.get("ignore") or ())
        self._groups = [
            (tuple(group["targets"]), _encoding(group, facts))
            for group in facts["config_groups"].values()
        ]
        self._made = {
            id(encoding): (methods.quantized(encoding), methods.quantized_experts(encoding))
            for _, encoding in self._groups
        }

    def weights(self, path: str, layer: Weighted) -> WeightMethod:
        encoding = self._encoding_of(path, layer.pieces()) if layer.is_linear else None
        if encoding is None:
            return self._plain.weights(path, layer)
        if layer.own_method is None:
            return self._made[id(encoding)][0]
        assert isinstance(layer.own_method, Plain)
        return Decoding(encoding, layer.own_method)

    def experts(self, path: str, layer: Experts) -> ExpertsMethod:
        encoding = self._encoding_of(path, layer.pieces())
        if encoding is None:
            return self._plain.experts(path, layer)
        return self._made[id(encoding)][1]

    def _encoding_of(self, path: str, pieces: Iterable[Piece]) -> Encoding | None:
        """The one of all pieces; None: they are plain. Raises ConfigError if they differ."""
        found = {id(e): e for e in (self._encoding_for(self._names(path, p)) for p in pieces)}
        if len(found) > 1:
            raise ConfigError(
                f"the checkpoint quantizes some parts of {path} and others not, or otherwise "
                "(config_groups and ignore in its quantization_config); they are one product "
                "here. Parts of one projection need one encoding."
            )
        (encoding,) = found.values()
        return encoding

    def _encoding_for(self, names: Iterable[str]) -> Encoding | None:
        names = tuple(names)
        if any(_matches(pattern, name) for pattern in self._ignored for name in names):
            return None
        for targets, encoding in self._groups:
            if any(t == "Linear" or _matches(t, name) for t in targets for name in names):
                return encoding
        return None


def _matches(pattern: str, name: str) -> bool:
    """Whether an entry of `targets` or `ignore` means the module of this name."""
    if pattern.startswith("re:"):
        return re.match(pattern.removeprefix("re:"), name) is not None
    return pattern == name


def _encoding(group: Mapping[str, Any], facts: Mapping[str, Any]) -> Encoding:
    weights = group.get("weights") or {}
    # Fields that must be there, then those that may be, with what they mean when they are not.
    stated = {"num_bits": 8, "strategy": "channel"}
    usual = {"symmetric": True, "dynamic": False, "actorder": None}
    found = {**usual, **weights}
    wrong = {
        f"weights.{name}": found.get(name)
        for name, value in {**stated, **usual}.items()
        if found.get(name) != value
    }
    for name in ("input_activations", "output_activations"):
        if group.get(name):
            wrong[name] = "quantized"
    for name in ("kv_cache_scheme", "sparsity_config", "transform_config"):
        if facts.get(name):
            wrong[name] = facts[name]
    form = group.get("format") or facts.get("format")
    kind = (form, weights.get("type"))
    made = {
        ("pack-quantized", "int"): PackedChannelInt8,
        ("naive-quantized", "float"): ChannelFloat8,
        ("float-quantized", "float"): ChannelFloat8,
    }.get(kind)
    if made is None:
        wrong["format, type"] = kind
    if made is None or wrong:
        listed = ", ".join(f"{name} {value!r}" for name, value in wrong.items())
        raise ConfigError(
            f"this checkpoint's compressed-tensors format is not supported ({listed}); supported "
            f"are {SUPPORTED}. Use a checkpoint in that form, or one that is not quantized."
        )
    return made()
