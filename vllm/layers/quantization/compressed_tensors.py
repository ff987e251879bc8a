"""The format of the compressed-tensors library, as llm-compressor writes it.

Supported: 8 bits per weight with one scale per output channel, integers packed in int32
("pack-quantized") or float8 as it is ("naive-quantized", "float-quantized"), multiplied by
activations that are not quantized. Fields and their meanings: compressed-tensors 0.19.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import torch
from torch import Tensor

from vllm.errors import ConfigError, LoadError
from vllm.layers.methods import DeviceMethods
from vllm.layers.moe import Experts
from vllm.layers.quantization.encoding import EncodedTensor, Encoding, QuantizedPiece
from vllm.layers.schemes import Checkpoint, Scheme
from vllm.layers.shapes import Piece, Share
from vllm.layers.weighted import Weighted
from vllm.layers.weights import PLAIN_DTYPES, WHOLE, random_weights

_PER_INT32 = 4  # 8-bit values
_TYPICAL = 64.0  # size of a random 8-bit value


@dataclass(frozen=True, slots=True)
class ChannelFloat8(Encoding):
    """weight [out, in] float8 and weight_scale [out, 1]."""

    values_dtype: ClassVar[torch.dtype] = torch.float8_e4m3fn

    def tensors(self, piece: Piece) -> tuple[EncodedTensor, ...]:
        values = EncodedTensor(
            "weight", piece.shape, (self.values_dtype,), _random_float8, piece.share
        )
        return values, _scales(piece)

    def decode(self, loaded: Mapping[str, Tensor], piece: Piece) -> QuantizedPiece:
        return QuantizedPiece(loaded["weight"], loaded["weight_scale"])


@dataclass(frozen=True, slots=True)
class PackedChannelInt8(Encoding):
    """weight_packed [out, in / 4] int32, weight_scale [out, 1], weight_shape [2] = (out, in).

    An int32 holds four neighbouring inputs, the first in its lowest bits, each plus 128.
    """

    values_dtype: ClassVar[torch.dtype] = torch.int8

    def tensors(self, piece: Piece) -> tuple[EncodedTensor, ...]:
        outputs, inputs = piece.shape
        share = piece.share
        if share.dim == 1:
            if share.start % _PER_INT32 or share.length % _PER_INT32:
                raise ConfigError(
                    f"a weight with {inputs} inputs is packed in fours, and a rank's "
                    f"{share.length} are no multiple of 4: choose a smaller "
                    "--tensor-parallel-size"
                )
            share = Share(1, share.start // _PER_INT32, share.length // _PER_INT32)
        packed = (outputs, -(-inputs // _PER_INT32))
        return (
            EncodedTensor("weight_packed", packed, (torch.int32,), _random_int32, share),
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
        # The bytes lie in order (little-endian), and flipping the top bit takes 128 off.
        unsigned = loaded["weight_packed"].view(torch.int8)
        return QuantizedPiece(unsigned[:, : piece.num_inputs] ^ -128, loaded["weight_scale"])


_FORMS: Final[Mapping[tuple[str, str], Encoding]] = {  # (format, type of the weights)
    ("pack-quantized", "int"): PackedChannelInt8(),
    ("naive-quantized", "float"): ChannelFloat8(),
    ("float-quantized", "float"): ChannelFloat8(),
}
_SUPPORTED: Final = (
    "8-bit weights with one scale per channel and activations that are not quantized: num_bits 8, "
    "strategy 'channel', symmetric, input_activations null, (format, type) "
    + " or ".join(map(str, _FORMS))
)


def _scales(piece: Piece) -> EncodedTensor:
    return EncodedTensor(
        "weight_scale",
        (piece.shape[0], 1),
        PLAIN_DTYPES,
        lambda shape, generator: random_weights(shape, generator) / _TYPICAL,
        piece.share.along(0),
    )


def _random_int32(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    limits = torch.iinfo(torch.int32)
    return torch.randint(limits.min, limits.max, shape, dtype=torch.int32, generator=generator)


def _random_float8(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return (torch.randn(shape, generator=generator) * _TYPICAL).to(torch.float8_e4m3fn)


@dataclass(frozen=True, slots=True)
class _Group:
    """Layers that are quantized alike."""

    targets: tuple[str, ...]
    encoding: Encoding


class CompressedTensors(Scheme):
    """Linear layers and experts in the encoding of their group, all others plain."""

    def __init__(
        self, methods: DeviceMethods, checkpoint: Checkpoint, facts: Mapping[str, Any]
    ) -> None:
        """`facts` is `quantization_config` of config.json. Raises ConfigError."""
        super().__init__(methods)
        self._checkpoint = checkpoint
        self._ignored = tuple(facts.get("ignore") or ())
        self._groups = [_group(group, facts) for group in _groups(facts)]

    def encoding_of(self, path: str, layer: Weighted | Experts) -> Encoding | None:
        """Raises ConfigError if parts of the layer differ."""
        pieces = list(layer.pieces())
        if isinstance(layer, Weighted) and layer.may_stay_plain:
            names = self._checkpoint.modules(path, pieces[0])
            if not any(self._checkpoint.holds(f"{name}.weight_scale") for name in names):
                return None
        found = {self._encoding_for(self._checkpoint.modules(path, piece)) for piece in pieces}
        if len(found) > 1:
            raise ConfigError(
                f"the checkpoint quantizes some parts of {path} and others not, or otherwise "
                "(config_groups and ignore in its quantization_config); they are one product "
                "here. Parts of one projection need one encoding."
            )
        return found.pop()

    def _encoding_for(self, names: Sequence[str]) -> Encoding | None:
        """What the library chooses: an exact name, else a pattern, else a class."""
        if _match(self._ignored, names, _is_name) or _match(self._ignored, names, _is_pattern_of):
            return None
        for matches in (_is_name, _is_pattern_of, _is_class):
            for group in self._groups:
                if _match(group.targets, names, matches):
                    return group.encoding
        return None


def _match(
    entries: Iterable[str], names: Iterable[str], matches: Callable[[str, str], bool]
) -> bool:
    names = tuple(names)
    return any(matches(entry, name) for entry in entries for name in names)


def _is_name(entry: str, name: str) -> bool:
    return entry == name


def _is_pattern_of(entry: str, name: str) -> bool:
    return entry.startswith("re:") and re.match(entry.removeprefix("re:"), name) is not None


def _is_class(entry: str, name: str) -> bool:
    return entry == "Linear"


def _groups(facts: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    found = facts.get("config_groups")
    if not isinstance(found, Mapping) or not found:
        raise ConfigError(
            f"quantization_config of config.json has config_groups {found!r}; an object with at "
            "least one group is needed. The checkpoint is incomplete: copy it again."
        )
    return list(found.values())


def _group(group: Mapping[str, Any], facts: Mapping[str, Any]) -> _Group:
    targets = tuple(group.get("targets") or ())
    unknown = [t for t in targets if t != "Linear" and t[:1].isupper()]
    if unknown or not targets:
        raise ConfigError(
            f"a group in quantization_config of config.json has targets {list(targets)}; known "
            "are 'Linear', names of modules, and patterns that begin with 're:'"
        )
    return _Group(targets, _encoding(group, facts))


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
        value = facts.get(name)
        if value and not (name == "sparsity_config" and value.get("format") == "dense"):
            wrong[name] = value
    form = (group.get("format") or facts.get("format"), weights.get("type"))
    if form not in _FORMS:
        wrong["(format, type)"] = form
    if wrong:
        listed = ", ".join(f"{name} {value!r}" for name, value in wrong.items())
        raise ConfigError(
            f"this checkpoint's compressed-tensors format is not supported ({listed}); supported "
            f"are {_SUPPORTED}. Use a checkpoint in that form, or one that is not quantized."
        )
    return _FORMS[form]
