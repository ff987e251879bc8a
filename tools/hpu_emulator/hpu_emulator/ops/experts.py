"""Mixture of experts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import torch
import torch.nn.functional as F
from hpu_emulator.ops.library import CompileFailed, kernel
from torch import Tensor

_ACTIVATIONS: Final[dict[str, Callable[[Tensor], Tensor]]] = {
    "gelu": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
}
_OPTIONS: Final = "bool recomp=False, int chunk_size=0, int total_experts=0"
_ROUTING: Final = "Tensor hidden_states, Tensor expert_routing_table, Tensor router_weights"
_PLACE: Final = "bool permuted_weights, str activation, int experts_min, int experts_max"


def _shape(hidden_states: Tensor, *rest: object, **options: object) -> Tensor:
    return torch.empty_like(hidden_states)


def _check(x: Tensor, table: Tensor, weights: Tensor, num_experts: int, first: int, last: int):  # type: ignore[no-untyped-def]
    if weights.dtype != x.dtype:
        raise CompileFailed(f"router weights are {weights.dtype}, hidden states {x.dtype}")
    if table.dtype != torch.int64:
        raise CompileFailed(f"the routing table is {table.dtype}, int64 is needed")
    if last - first + 1 != num_experts:
        raise RuntimeError(f"experts {first} to {last}, but {num_experts} lists of weights")


def combine(
    x: Tensor,
    table: Tensor,
    weights: Tensor,
    first: int,
    num_experts: int,
    expert: Callable[[int, Tensor], Tensor],
) -> Tensor:
    """Sum over each token's experts first .. first + num_experts - 1, as routed.

    `expert(i, rows)` computes the i-th of them. Sums are float32.
    """
    out = torch.zeros(x.shape, dtype=torch.float32)
    for i in range(num_experts):
        tokens, choices = (table == first + i).nonzero(as_tuple=True)
        if len(tokens):
            scaled = expert(i, x[tokens]).float() * weights[tokens, choices].float().unsqueeze(1)
            out.index_add_(0, tokens, scaled)
    return out.to(x.dtype)


def _activation(name: str) -> Callable[[Tensor], Tensor]:
    if name not in _ACTIVATIONS:
        known = ", ".join(sorted(_ACTIVATIONS))
        raise RuntimeError(f"activation {name!r}: one of {known} is needed")
    return _ACTIVATIONS[name]


@kernel(
    f"mixture_of_experts({_ROUTING}, Tensor[] w1, Tensor[] w2, Tensor[] w3, {_PLACE}, *, {_OPTIONS})"
    " -> Tensor",
    meta=_shape,
)
def mixture_of_experts(
    hidden_states: Tensor,
    expert_routing_table: Tensor,
    router_weights: Tensor,
    w1: Sequence[Tensor],
    w2: Sequence[Tensor],
    w3: Sequence[Tensor],
    permuted_weights: bool,
    activation: str,
    experts_min: int,
    experts_max: int,
    *,
    recomp: bool = False,
    chunk_size: int = 0,
    total_experts: int = 0,
) -> Tensor:
    """Gates w1, ups w2 [H, F] and downs w3 [F, H], transposed where `permuted_weights`."""
    _check(hidden_states, expert_routing_table, router_weights, len(w1), experts_min, experts_max)
    act = _activation(activation)

    def multiply(rows: Tensor, weight: Tensor) -> Tensor:
        return rows @ (weight.t() if permuted_weights else weight)

    def expert(i: int, rows: Tensor) -> Tensor:
        return multiply(act(multiply(rows, w1[i])) * multiply(rows, w2[i]), w3[i])

    return combine(
        hidden_states, expert_routing_table, router_weights, experts_min, len(w1), expert
    )


@kernel(
    f"mixture_of_experts.fused_weights({_ROUTING}, Tensor[] w12, Tensor[] w3, {_PLACE}, *, "
    f"{_OPTIONS}) -> Tensor",
    meta=_shape,
)
def mixture_of_experts_fused_weights(
    hidden_states: Tensor,
    expert_routing_table: Tensor,
    router_weights: Tensor,
    w12: Sequence[Tensor],
    w3: Sequence[Tensor],
    permuted_weights: bool,
    activation: str,
    experts_min: int,
    experts_max: int,
    *,
    recomp: bool = False,
    chunk_size: int = 0,
    total_experts: int = 0,
) -> Tensor:
    """As above, gate and up in one: along dimension 0 where permuted, else 1."""
    halves = [weight.chunk(2, dim=0 if permuted_weights else 1) for weight in w12]
    return mixture_of_experts(
        hidden_states,
        expert_routing_table,
        router_weights,
        [gate for gate, _ in halves],
        [up for _, up in halves],
        w3,
        permuted_weights,
        activation,
        experts_min,
        experts_max,
    )


@kernel(
    f"mixture_of_experts.bias_fused_weights({_ROUTING}, Tensor[] w12, Tensor[] w3, "
    "Tensor[] w12_bias, Tensor[] w3_bias, bool permuted_weights, int experts_min, "
    f"int experts_max, *, {_OPTIONS}) -> Tensor",
    meta=_shape,
)
def mixture_of_experts_bias_fused_weights(
    hidden_states: Tensor,
    expert_routing_table: Tensor,
    router_weights: Tensor,
    w12: Sequence[Tensor],
    w3: Sequence[Tensor],
    w12_bias: Sequence[Tensor],
    w3_bias: Sequence[Tensor],
    permuted_weights: bool,
    experts_min: int,
    experts_max: int,
    *,
    recomp: bool = False,
    chunk_size: int = 0,
    total_experts: int = 0,
) -> Tensor:
    """The clamped, interleaved gate of GPT-OSS: gates in even columns, ups in odd ones."""
    _check(hidden_states, expert_routing_table, router_weights, len(w12), experts_min, experts_max)
    alpha, limit = 1.702, 7.0

    def multiply(rows: Tensor, weight: Tensor) -> Tensor:
        return rows @ (weight.t() if permuted_weights else weight)

    def expert(i: int, rows: Tensor) -> Tensor:
        both = multiply(rows, w12[i]) + w12_bias[i]
        gate, up = both[..., ::2].clamp(max=limit), both[..., 1::2].clamp(-limit, limit)
        return multiply((up + 1) * gate * torch.sigmoid(alpha * gate), w3[i]) + w3_bias[i]

    return combine(
        hidden_states, expert_routing_table, router_weights, experts_min, len(w12), expert
    )
