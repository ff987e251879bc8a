"""Mixture of experts: torch.ops.hpu.mixture_of_experts with weights in floating point.

x [T, H] is routed to k experts per token by expert_routing_table [T, k] and weighted by
router_weights [T, k]. The lists of weights are those of the experts experts_min to experts_max;
what is routed elsewhere adds nothing. Gates w1 and ups w2 are [H, F], downs w3 [F, H], w12 is
[H, 2 * F]; where permuted, all of them are transposed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.nn.functional as F
from hpu_emulator.ops.fp8 import Scale, check_fp8, decode
from hpu_emulator.ops.library import CompileFailed, kernel
from torch import Tensor

_ACTIVATIONS: Final[dict[str, Callable[[Tensor], Tensor]]] = {
    "gelu": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
}
ROUTING: Final = ("Tensor hidden_states", "Tensor expert_routing_table", "Tensor router_weights")
SEPARATE: Final = ("Tensor[] w1", "Tensor[] w2", "Tensor[] w3")
FUSED: Final = ("Tensor[] w12", "Tensor[] w3")
BIASES: Final = ("Tensor[] w12_bias", "Tensor[] w3_bias")
PLACE: Final = ("bool permuted_weights", "str activation", "int experts_min", "int experts_max")
# Gates with biases have an activation of their own.
PLACE_OF_BIASED: Final = ("bool permuted_weights", "int experts_min", "int experts_max")
# How the kernel cuts its work up, which no result depends on.
SLICING: Final = ("int chunk_size=0", "int total_experts=0")
CLAMPS: Final = ("float alpha=1.702", "float limit=7.0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """Arguments of any overload; those that an overload does not have keep their defaults."""

    hidden_states: Tensor
    expert_routing_table: Tensor
    router_weights: Tensor
    experts_min: int
    experts_max: int
    permuted_weights: bool
    activation: str = ""
    w1: Sequence[Tensor] = ()
    w2: Sequence[Tensor] = ()
    w3: Sequence[Tensor] = ()
    w12: Sequence[Tensor] = ()
    w12_bias: Sequence[Tensor] = ()
    w3_bias: Sequence[Tensor] = ()
    d_scale_hidden_states: Scale = None
    d_scale_intermediate_hidden_states: Sequence[Scale] = ()
    d_scale_w1: Sequence[Scale] = ()
    d_scale_w2: Sequence[Scale] = ()
    d_scale_w3: Sequence[Scale] = ()
    d_scale_w12: Sequence[Scale] = ()
    block_size: int = 0
    measurement_mode: bool = False
    measure_per_token: bool = False
    recomp: bool | None = None
    chunk_size: int = 0
    total_experts: int = 0
    alpha: float = 1.702
    limit: float = 7.0

    @property
    def num_experts(self) -> int:
        return len(self.w3)

    def gates_and_ups(self) -> list[tuple[Tensor, Tensor]]:
        """Halves of w12 are along dimension 0 where permuted, else 1."""
        if not self.w12:
            return list(zip(self.w1, self.w2, strict=True))
        halves = (weight.chunk(2, dim=0 if self.permuted_weights else 1) for weight in self.w12)
        return [(gate, up) for gate, up in halves]

    def oriented(self, weight: Tensor) -> Tensor:
        """[in, out]."""
        return weight.t() if self.permuted_weights else weight

    def check(self, dtype: torch.dtype) -> None:
        """`dtype` is that of the result, which the router's weights share."""
        x, table = self.hidden_states, self.expert_routing_table
        check_routing(x, table, self.router_weights, dtype)
        counts = {len(self.w3), len(self.w12) or len(self.w1), len(self.w12) or len(self.w2)}
        if counts != {self.experts_max - self.experts_min + 1}:
            raise RuntimeError(
                f"experts {self.experts_min} to {self.experts_max}, "
                f"but lists of {', '.join(map(str, sorted(counts)))} weights"
            )
        lists = (
            self.w12_bias, self.w3_bias, self.d_scale_w1, self.d_scale_w2, self.d_scale_w3,
            self.d_scale_w12, self.d_scale_intermediate_hidden_states,
        )  # fmt: skip
        if any(len(found) not in (0, self.num_experts) for found in lists):
            raise RuntimeError(f"a list of scales or biases is not of {self.num_experts} experts")


def check_routing(x: Tensor, table: Tensor, weights: Tensor, dtype: torch.dtype) -> None:
    if weights.dtype != dtype:
        raise CompileFailed(f"router weights are {weights.dtype}, the result is {dtype}")
    if table.dtype != torch.int64:
        raise CompileFailed(f"the routing table is {table.dtype}, int64 is needed")
    if x.dim() != 2 or table.shape != weights.shape or table.shape[:-1] != x.shape[:1]:
        raise RuntimeError(
            f"hidden states {tuple(x.shape)}, routing table {tuple(table.shape)} and router "
            f"weights {tuple(weights.shape)}: [T, H], [T, k] and [T, k] are needed"
        )


def activation_of(name: str) -> Callable[[Tensor], Tensor]:
    if name not in _ACTIVATIONS:
        known = ", ".join(sorted(_ACTIVATIONS))
        raise RuntimeError(f"activation {name!r}: one of {known} is needed")
    return _ACTIVATIONS[name]


def clamped_gate(both: Tensor, alpha: float, limit: float) -> Tensor:
    """The activation of GPT-OSS: gates in even columns, ups in odd ones."""
    gate, up = both[..., ::2].clamp(max=limit), both[..., 1::2].clamp(-limit, limit)
    return (up + 1) * gate * torch.sigmoid(alpha * gate)


def combine(call: Call, dtype: torch.dtype, expert: Callable[[int, Tensor], Tensor]) -> Tensor:
    """Sum over each token's experts, [T, H]; sums are float32.

    `expert(i, tokens)` computes what the i-th of the call's experts makes of these tokens.
    """
    table, weights = call.expert_routing_table, call.router_weights
    out = torch.zeros(call.hidden_states.shape, dtype=torch.float32)
    present = set((table - call.experts_min).unique().tolist())
    for i in sorted(present.intersection(range(call.num_experts))):
        tokens, choices = (table == call.experts_min + i).nonzero(as_tuple=True)
        share = weights[tokens, choices].float().unsqueeze(1)
        out.index_add_(0, tokens, expert(i, tokens).float() * share)
    return out.to(dtype)


def declare(
    overload: str,
    arguments: Sequence[str],
    compute: Callable[[Call], Any],
    infer: Callable[[Call], Any],
    result: str = "Tensor",
) -> None:
    """One overload; `arguments` as the schema has them, "*" before those given by name only."""
    names = [argument.split("=")[0].split()[-1] for argument in arguments]
    positional = names[: names.index("*")] if "*" in names else names

    def bind(given: Sequence[Any], options: Mapping[str, Any]) -> Call:
        return Call(**dict(zip(positional, given, strict=False)), **options)

    def run(*given: Any, **options: Any) -> Any:
        return compute(bind(given, options))

    def shape(*given: Any, **options: Any) -> Any:
        return infer(bind(given, options))

    dot = "." if overload else ""
    schema = f"mixture_of_experts{dot}{overload}({', '.join(arguments)}) -> {result}"
    kernel(schema, meta=shape)(run)


def like_input(call: Call) -> Tensor:
    return torch.empty_like(call.hidden_states)


def like_input_in_bfloat16(call: Call) -> Tensor:
    return torch.empty_like(call.hidden_states, dtype=torch.bfloat16)


def _with_maxima(call: Call) -> tuple[Tensor, Tensor]:
    return like_input(call), call.hidden_states.new_empty(call.num_experts)


def measure(call: Call) -> tuple[Tensor, Tensor]:
    """The result, and the largest magnitude of each expert's inner activations, 0 if unused."""
    x = call.hidden_states
    call.check(x.dtype)
    pairs = call.gates_and_ups()
    act = activation_of(call.activation)
    maxima = torch.zeros(call.num_experts)

    def expert(i: int, tokens: Tensor) -> Tensor:
        rows = x[tokens]
        gate, up = (rows @ call.oriented(weight) for weight in pairs[i])
        inner = act(gate) * up
        maxima[i] = inner.abs().amax().float()
        return inner @ call.oriented(call.w3[i])

    return combine(call, x.dtype, expert), maxima.to(x.dtype)


def measure_biased(call: Call) -> tuple[Tensor, Tensor]:
    if call.measure_per_token:
        raise RuntimeError("mixture_of_experts with measure_per_token is not emulated")
    x = call.hidden_states
    call.check(x.dtype)
    maxima = torch.zeros(call.num_experts)

    def expert(i: int, tokens: Tensor) -> Tensor:
        both = x[tokens] @ call.oriented(call.w12[i]) + call.w12_bias[i]
        inner = clamped_gate(both, call.alpha, call.limit)
        maxima[i] = inner.abs().amax().float()
        return inner @ call.oriented(call.w3[i]) + call.w3_bias[i]

    return combine(call, x.dtype, expert), maxima.to(x.dtype)


def _measure_if_asked(call: Call) -> tuple[Tensor, Tensor]:
    out, maxima = measure(call)
    return out, maxima if call.measurement_mode else torch.zeros_like(maxima)


def _dequantised(weights: Sequence[Tensor], scales: Sequence[Scale], size: int) -> list[Tensor]:
    """Each block of size x size times its scale; the last ones may be cut off."""
    found = []
    for weight, scale in zip(weights, scales, strict=True):
        check_fp8("a weight", weight.dtype)
        if not isinstance(scale, Tensor) or scale.dim() != 2:
            raise RuntimeError("d_scale of blocks: a matrix per expert is needed")
        if list(scale.shape) != [-(-width // size) for width in weight.shape]:
            raise RuntimeError(
                f"d_scale {tuple(scale.shape)} of weights {tuple(weight.shape)} in blocks of {size}"
            )
        wide = scale.repeat_interleave(size, 0).repeat_interleave(size, 1)
        wide = wide[: weight.shape[0], : weight.shape[1]]
        found.append((decode(weight) * wide.float()).to(torch.bfloat16))
    return found


def _blockwise(call: Call) -> Tensor:
    """Weights as real values in bfloat16, which the hidden states are in too."""
    if call.hidden_states.dtype != torch.bfloat16:
        raise RuntimeError(f"hidden states are {call.hidden_states.dtype}, bfloat16 is needed")
    if call.block_size <= 0:
        raise RuntimeError(f"block_size {call.block_size}: a positive number is needed")
    size = call.block_size
    plain = Call(
        hidden_states=call.hidden_states,
        expert_routing_table=call.expert_routing_table,
        router_weights=call.router_weights,
        experts_min=call.experts_min,
        experts_max=call.experts_max,
        permuted_weights=call.permuted_weights,
        activation=call.activation,
        w1=_dequantised(call.w1, call.d_scale_w1, size),
        w2=_dequantised(call.w2, call.d_scale_w2, size),
        w3=_dequantised(call.w3, call.d_scale_w3, size),
        w12=_dequantised(call.w12, call.d_scale_w12, size),
    )
    return measure(plain)[0]


_BLOCK: Final = ("int block_size",)
_MEASURED: Final = "(Tensor, Tensor)"
for _name, _weights in (("", SEPARATE), ("fused_weights", FUSED)):
    declare(
        _name,
        (*ROUTING, *_weights, *PLACE, "*", "bool? recomp=True", *SLICING),
        lambda call: measure(call)[0],
        like_input,
    )
for _name, _weights in (("fp8_measurement", SEPARATE), ("fp8_measurement_fused_weights", FUSED)):
    declare(
        _name,
        (*ROUTING, *_weights, *PLACE, "bool measurement_mode", *SLICING),
        _measure_if_asked,
        _with_maxima,
        _MEASURED,
    )
for _name, _weights in (("fp8_blockwise", SEPARATE), ("fp8_fused_weights_blockwise", FUSED)):
    _scales = [f"Tensor[] d_scale_{argument.split()[-1]}" for argument in _weights]
    declare(
        _name,
        (*ROUTING, *_weights, *_scales, *_BLOCK, *PLACE, *SLICING),
        _blockwise,
        like_input_in_bfloat16,
    )
declare(
    "bias_fused_weights",
    (*ROUTING, *FUSED, *BIASES, *PLACE_OF_BIASED, "*", "bool? recomp=True", *SLICING, *CLAMPS),
    lambda call: measure_biased(call)[0],
    like_input,
)
declare(
    "measurement_bias_fused_weights",
    (*ROUTING, *FUSED, *BIASES, *PLACE_OF_BIASED, "bool measurement_mode=True",
     "bool measure_per_token=False", *SLICING, *CLAMPS),
    measure_biased,
    _with_maxima,
    _MEASURED,
)  # fmt: skip
