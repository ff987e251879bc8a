"""Depthwise causal convolution over tokens, with the last inputs of each sequence as its state.

x [T, D] or [R, T, D], weight [W, D], bias [D], states [slots, W - 1, D]: the oldest input first.
Neither op changes its inputs: the second result is all states, those of the sequences renewed.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from hpu_emulator.ops.library import kernel
from torch import Tensor


def _check(x: Tensor, rank: int, states: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    if x.dim() != rank or states.dim() != 3 or weight.dim() != 2:
        raise RuntimeError(
            f"x, conv_state and weight have {x.dim()}, {states.dim()} and {weight.dim()} "
            f"dimensions; {rank}, 3 and 2 are needed"
        )
    width, channels = weight.shape
    if x.shape[-1] != channels or states.shape[1:] != (width - 1, channels):
        raise RuntimeError(
            f"x {tuple(x.shape)} and conv_state {tuple(states.shape)} do not fit a weight "
            f"[width, channels] of {tuple(weight.shape)}"
        )
    if bias is not None and bias.shape != (channels,):
        raise RuntimeError(f"bias {tuple(bias.shape)}: one per channel, ({channels},)")


def _finish(out: Tensor, bias: Tensor | None, activation: bool, dtype: torch.dtype) -> Tensor:
    if bias is not None:
        out = out + bias.float()
    return (F.silu(out) if activation else out).to(dtype)


def _shapes(x: Tensor, conv_state: Tensor, *rest: object, **options: object) -> tuple[Tensor, ...]:
    return torch.empty_like(x), torch.empty_like(conv_state)


@kernel(
    "causal_conv1d_update(Tensor x, Tensor conv_state, Tensor weight, Tensor? bias=None, *, "
    "bool activation=True, int pad_slot_id=-1) -> (Tensor, Tensor)",
    meta=_shapes,
)
def causal_conv1d_update(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: bool = True,
    pad_slot_id: int = -1,
) -> tuple[Tensor, Tensor]:
    """x [R, T, D]: T more tokens of each of R sequences, whose states are the R of conv_state."""
    _check(x, 3, conv_state, weight, bias)
    if x.shape[0] != conv_state.shape[0]:
        raise RuntimeError(f"{x.shape[0]} sequences, but {conv_state.shape[0]} states")
    width, num_tokens = weight.shape[0], x.shape[1]
    known = torch.cat((conv_state.float(), x.float()), dim=1)
    taps = weight.float()
    out = torch.zeros(x.shape)
    for tap in range(width):
        out += known[:, tap : tap + num_tokens] * taps[tap]
    state = known[:, num_tokens:].to(conv_state.dtype)
    # A result never shares memory with an argument.
    return _finish(out, bias, activation, x.dtype), state.clone()


@kernel(
    "causal_conv1d_fwd(Tensor x, Tensor conv_state, Tensor weight, Tensor? bias, "
    "Tensor has_initial_state, Tensor query_start_loc, Tensor cache_indices, "
    "bool activation=True, int pad_slot_id=-1) -> (Tensor, Tensor)",
    meta=_shapes,
)
def causal_conv1d_fwd(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    has_initial_state: Tensor,
    query_start_loc: Tensor,
    cache_indices: Tensor,
    activation: bool = True,
    pad_slot_id: int = -1,
) -> tuple[Tensor, Tensor]:
    """x [T, D]: the tokens of R sequences, which begin at query_start_loc [R + 1].

    Their states are those at cache_indices [R]; sequences without an initial state begin with
    zeros. Sequences in pad_slot_id, and tokens of none, give zeros and renew no state.
    """
    _check(x, 2, conv_state, weight, bias)
    num_rows = cache_indices.numel()
    if has_initial_state.numel() != num_rows or query_start_loc.numel() != num_rows + 1:
        raise RuntimeError(
            f"{num_rows} cache_indices, {has_initial_state.numel()} has_initial_state and "
            f"{query_start_loc.numel()} query_start_loc: R, R and R + 1 are needed"
        )
    states = conv_state.clone()
    if num_rows == 0 or conv_state.shape[0] == 0:
        return torch.zeros_like(x), states
    reach = weight.shape[0] - 1
    starts, slots = query_start_loc.long(), cache_indices.long()
    is_padding = slots == pad_slot_id
    slots = slots.masked_fill(is_padding, 0)
    is_fresh = (has_initial_state == 0).view(-1, 1, 1)
    old = conv_state.index_select(0, slots).float().masked_fill(is_fresh, 0.0)
    # Each sequence's state stands before its tokens, in one long row of both.
    token = torch.arange(x.shape[0])
    row = torch.searchsorted(starts[1:].contiguous(), token, right=True)
    is_real = (row < num_rows) & (token >= starts[0])
    row = row.clamp(max=num_rows - 1)
    is_real &= ~is_padding[row]
    place = token + (row + 1) * reach
    known = torch.zeros(x.shape[0] + num_rows * reach, x.shape[1])
    history = (starts[:-1] + torch.arange(num_rows) * reach).unsqueeze(1) + torch.arange(reach)
    known[history] = old
    known[place[is_real]] = x[is_real].float()
    out = torch.zeros(x.shape)
    for tap, factor in enumerate(weight.float()):
        out += known[place - reach + tap] * factor
    out = _finish(out, bias, activation, x.dtype).masked_fill(~is_real.unsqueeze(1), 0.0)
    renewed = known[history + (starts[1:] - starts[:-1]).unsqueeze(1)]
    states[slots[~is_padding]] = renewed[~is_padding].to(states.dtype)
    return out, states
