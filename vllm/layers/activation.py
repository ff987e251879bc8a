"""Names of activations in checkpoints' configurations, and what computes them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor

from vllm.errors import ConfigError
from vllm.ops.registry import Ops

Activation = Callable[[Tensor], Tensor]

# Name in a config -> the name our ops use.
_GATED = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
_PLAIN: dict[str, Activation] = {
    "silu": F.silu,
    "swish": F.silu,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_new": partial(F.gelu, approximate="tanh"),
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
}


def gated_name(name: str) -> str:
    """The name by which `ops.moe` knows the gated activation that a config calls `name`."""
    if name not in _GATED:
        raise ConfigError(_unknown(name, _GATED))
    return _GATED[name]


def gated(name: str, ops: Ops) -> Activation:
    """[T, 2 * I] -> [T, I]: act(first half) * second half."""
    table = {
        "silu": ops.silu_and_mul,
        "gelu": ops.gelu_and_mul,
        "gelu_tanh": ops.gelu_tanh_and_mul,
    }
    return table[gated_name(name)]


def plain(name: str) -> Activation:
    """An element-wise activation."""
    if name not in _PLAIN:
        raise ConfigError(_unknown(name, _PLAIN))
    return _PLAIN[name]


def _unknown(name: str, known: dict[str, str] | dict[str, Activation]) -> str:
    return (
        f"this model's config asks for activation {name!r}; known here: {', '.join(known)}. "
        "Try --model-impl transformers."
    )
