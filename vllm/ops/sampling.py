"""From logits to tokens: draws, their noise, masks and log-probabilities.

A draw is a race of exponential clocks with the probabilities as rates: the first to ring wins. In
logarithms, and without a softmax: the greatest of logit + Gumbel noise.

Noise is counter-based: a draw depends on (seed, position, token) and on nothing else.

So a request draws the same tokens in any batch, at any pipeline depth and after a preemption, and
nobody keeps generator state. A row's seed (64 bits) and position are mixed into two 32-bit keys,
and each token is hashed with both. The mixer is a 32-bit finaliser of two multiplications and three
xor-shifts, with the constants of MurmurHash3's fmix32 (Austin Appleby, public domain). Everything
is int32 arithmetic modulo 2^32, because some devices have no 64-bit integers.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import torch
from torch import Tensor

from vllm.ops.registry import op


def _signed(value: int) -> int:
    return value - (1 << 32) if value >= 1 << 31 else value


_MULTIPLIER_1 = _signed(0x85EBCA6B)
_MULTIPLIER_2 = _signed(0xC2B2AE35)
_GOLDEN = _signed(0x9E3779B9)  # fractional part of the golden ratio
_ROOT2 = 0x6A09E667  # fractional part of the square root of two
NO_TOKEN: Final = -1  # as in core.plan
_EXP_SERIES: Final = (1 / 5040, 1 / 720, 1 / 120, 1 / 24, 1 / 6, 0.5, 1.0, 1.0)
_LARGEST = 1.0 - 2.0**-24  # largest float32 below one


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift of int32."""
    return (x >> bits) & ((1 << (32 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift_right(x, 16)) * _MULTIPLIER_1
    x = (x ^ _shift_right(x, 13)) * _MULTIPLIER_2
    return x ^ _shift_right(x, 16)


def noise_uniforms(seeds: Tensor, positions: Tensor, vocab_size: int) -> Tensor:
    """The variates in (0, 1) behind exponential_noise, [S, V] float32.

    32 bits are rounded to float32, so that values near zero, which decide draws, stay fine-grained.
    """
    low, high = seeds.int().unbind(-1)
    position = positions.int()
    key = _mix(_mix(_mix(low ^ _GOLDEN) + high) ^ position).unsqueeze(1)
    other = _mix(_mix(_mix(position ^ _ROOT2) + low) ^ high).unsqueeze(1)
    token = torch.arange(vocab_size, dtype=torch.int32, device=seeds.device)
    bits = _mix(_mix(token + key) ^ other)
    coarse = _shift_right(bits, 8).float() * 2.0**-24
    fine = ((bits & 0xFF).float() + 0.5) * 2.0**-32
    return (coarse + fine).clamp_(max=_LARGEST)


def exponential_noise(seeds: Tensor, positions: Tensor, vocab_size: int) -> Tensor:
    """Independent Exp(1) variates [S, V] float32, all > 0 and finite.

    seeds [S, 2] int32: the low and high word of each row's seed. positions [S] int32. The token
    argmax(probabilities / noise) is a draw from the probabilities.
    """
    return torch.log1p(noise_uniforms(seeds, positions, vocab_size).neg_()).neg_()


@op
def greatest(values: Tensor) -> Tensor:
    """Column of the greatest of each row of [S, V] float32, the first of equals: int32 [S].

    NO_TOKEN for a row with NaN, or with nothing but -inf.
    """
    # `max` reports NaN and takes as long as `argmax`: the check costs a comparison per row.
    best, token_ids = values.max(dim=-1)
    return token_ids.int().masked_fill_((best > -torch.inf).logical_not_(), NO_TOKEN)


def draw(logits: Tensor, seeds: Tensor, positions: Tensor) -> Tensor:
    """A token per row of logits [S, V] float32, drawn from their softmax: int32 [S].

    seeds and positions as for exponential_noise. NO_TOKEN for a row that holds NaN or +inf, or
    nothing but -inf. Only differences of logits are rounded, so a common offset does not matter.
    """
    noise = exponential_noise(seeds, positions, logits.shape[1]).log_().neg_()
    return greatest(noise.add_(logits - logits.amax(dim=-1, keepdim=True)))


def min_p_bound(logits: Tensor, log_min_p: Tensor) -> Tensor:
    """[S, 1]: the least of logits [S, V] that are likely enough; log_min_p [S], -inf: off."""
    # Ratios of probabilities are differences of logits, so no softmax is needed.
    return (logits.amax(dim=-1) + log_min_p).unsqueeze(1)


def nucleus_weights(gaps: Tensor) -> Tensor:
    """Probabilities relative to the greatest, as whole numbers: exp(gaps) * 2^35 rounded down.

    gaps <= 0, float32. float64 holds sums of 2^18 of them exactly, so that no order of summation
    changes a nucleus. Only additions and multiplications, which give the same bits everywhere.
    """
    r = gaps.clamp(min=-25.0) * (1 / 64)
    p = r * _EXP_SERIES[0] + _EXP_SERIES[1]
    for coefficient in _EXP_SERIES[2:]:
        p = p * r + coefficient
    for _ in range(6):
        p = p * p
    return (p * 2.0**35).floor()


def truncation_bound(logits: Tensor, top_k: Tensor, top_p: Tensor, width: int) -> Tensor:
    """[S, 1]: the least of logits [S, V] to keep; -inf: all.

    The top_k [S] int32 most likely tokens (V: off), and of these the fewest whose probabilities
    add up to top_p [S] (1: off). Tokens as likely as the last one kept are kept, too, so the result
    does not depend on how a sort orders equals. `width`: at least every top_k that is on, and V if
    one is off where top_p is on.
    """
    top_k, top_p = top_k.unsqueeze(1), top_p.unsqueeze(1)
    no_top_k, no_top_p = top_k == logits.shape[1], top_p == 1.0
    largest = logits.topk(width, dim=-1).values  # [S, W], descending
    weights = nucleus_weights(largest - largest[:, :1])
    weights.masked_fill_(torch.arange(width, device=logits.device) >= top_k, 0.0)
    cumulative = weights.cumsum(dim=-1)
    # Another token is needed as long as those before it fall short of top_p.
    needed = 1 + (cumulative < top_p * cumulative[:, -1:]).sum(dim=-1, keepdim=True)
    count = torch.where(no_top_p, top_k, torch.minimum(needed, top_k)).clamp(max=width).long()
    bound = largest.gather(1, count - 1)
    return bound.masked_fill(no_top_k & no_top_p, -torch.inf)


class DrawTables(NamedTuple):
    """What draws depend on, one entry per slot."""

    temperature: Tensor  # [num_slots] float32
    log_min_p: Tensor  # [num_slots] float32; -inf: off
    top_k: Tensor  # [num_slots] int32; V: off
    top_p: Tensor  # [num_slots] float32; 1: off
    seeds: Tensor  # [num_slots, 2] int32


@op
def choose(
    logits: Tensor, draws: Tensor, slots: Tensor, positions: Tensor, tables: DrawTables
) -> Tensor:
    """A token per row of logits [S, V] float32: int32 [S].

    Where draws [S] bool is false the greatest one; else one drawn after division by the
    temperature, min_p, top_k and top_p of slots [S] int32, with the noise of its seed and positions
    [S] int32. NO_TOKEN as `greatest` and `draw` say. Leaves the logits as they are.
    """
    token_ids = greatest(logits)
    index = draws.nonzero().squeeze(1)
    if not len(index):
        return token_ids
    temperature, log_min_p, top_k, top_p, seeds = (
        table.index_select(0, slots[index]) for table in tables
    )
    scaled = logits[index] / temperature.unsqueeze(1)
    scaled.masked_fill_(scaled < min_p_bound(scaled, log_min_p), -torch.inf)
    vocab_size = logits.shape[1]
    widths = torch.where((top_k == vocab_size) & (top_p == 1.0), 1, top_k)
    bound = truncation_bound(scaled, top_k, top_p, int(widths.max()))
    scaled.masked_fill_(scaled < bound, -torch.inf)
    token_ids[index] = draw(scaled, seeds, positions[index])
    return token_ids


@op
def gather_logprobs(
    scores: Tensor, token_ids: Tensor, k: int, normalizes: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids [L, 1 + k] int32, their log-probabilities, float32, and ranks [L] int32.

    Of scores [L, V] float32: entry 0 is token_ids [L] int32, the others the k greatest. The rank of
    a token is 1 + the number of tokens that score more. `normalizes`: scores are logits; otherwise
    they are given as they are. NaN is given as -inf.
    """
    chosen = token_ids.long().unsqueeze(1)
    chosen_scores = scores.gather(1, chosen)  # [L, 1]
    top_scores, top_ids = scores.topk(k, dim=-1)  # [L, k]
    ranks = (scores > chosen_scores).sum(dim=-1).add_(1)
    values = torch.cat((chosen_scores, top_scores), dim=-1)
    if normalizes:
        top = scores.amax(dim=-1, keepdim=True)
        values = (values - top) - (scores - top).exp_().sum(dim=-1, keepdim=True).log_()
    values = values.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    return torch.cat((chosen, top_ids), dim=-1).int(), values, ranks.int()


@op
def apply_token_bitmask(logits: Tensor, masks: Tensor) -> None:
    """Set logits [S, V] float32 to -inf, in place, where masks [S, ceil(V / 32)] int32 have a 0.

    Token t of a row is bit t % 32, least significant first, of word t // 32.
    """
    bits = torch.arange(32, dtype=torch.int32, device=masks.device)
    allowed = (masks.unsqueeze(-1) >> bits).bitwise_and_(1).flatten(1)[:, : logits.shape[1]]
    logits.masked_fill_(allowed == 0, -torch.inf)
