"""Noise and masks of sampling.

Noise is counter-based: a draw depends on (seed, position, token) and on nothing else.

So a request draws the same tokens in any batch, at any pipeline depth and after a preemption, and
nobody keeps generator state. A row's seed (64 bits) and position are mixed into two 32-bit keys,
and each token is hashed with both. The mixer is a 32-bit finaliser of two multiplications and three
xor-shifts, with the constants of MurmurHash3's fmix32 (Austin Appleby, public domain). Everything
is int32 arithmetic modulo 2^32, because some devices have no 64-bit integers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vllm.ops.registry import op


def _signed(value: int) -> int:
    return value - (1 << 32) if value >= 1 << 31 else value


_MULTIPLIER_1 = _signed(0x85EBCA6B)
_MULTIPLIER_2 = _signed(0xC2B2AE35)
_GOLDEN = _signed(0x9E3779B9)  # fractional part of the golden ratio
_ROOT2 = 0x6A09E667  # fractional part of the square root of two
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


@op
def exponential_noise(seeds: Tensor, positions: Tensor, vocab_size: int) -> Tensor:
    """Independent Exp(1) variates [S, V] float32, all > 0 and finite.

    seeds [S, 2] int32: the low and high word of each row's seed. positions [S] int32. The token
    argmax(probabilities / noise) is a draw from the probabilities.
    """
    return torch.log1p(noise_uniforms(seeds, positions, vocab_size).neg_()).neg_()


@op
def apply_token_bitmask(logits: Tensor, masks: Tensor) -> None:
    """Set logits [S, V] float32 to -inf, in place, where masks [S, ceil(V / 32)] int32 have a 0.

    Token t of a row is bit t % 32, least significant first, of word t // 32.
    """
    bits = torch.arange(32, dtype=torch.int32, device=masks.device)
    allowed = (masks.unsqueeze(-1) >> bits).bitwise_and_(1).flatten(1)[:, : logits.shape[1]]
    logits.masked_fill_(allowed == 0, -torch.inf)
