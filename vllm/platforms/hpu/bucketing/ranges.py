"""Values along one axis of the buckets, in each of the three strategies. Integers throughout."""

from __future__ import annotations

from typing import Final

# What floating point adds to a power that is a whole number must not round it up a step.
_NOISE: Final = 1e-9


def round_up(value: int, step: int) -> int:
    return -(-value // step) * step


def linear_range(least: int, step: int, most: int) -> list[int]:
    """Doubling from `least` to `step`, then multiples of `step`; 0 too where that is the least."""
    if least == 0 and most == 0:
        return [0]
    start = least or step
    ramp = []
    value = start
    while value < step and value <= most:
        ramp.append(value)
        value *= 2
    flat = range(step, most + 1, step)
    found = {value for value in (*ramp, *flat) if value >= start}
    return sorted(found | {0} if least == 0 else found)


def exponential_range(least: int, step: int, most: int, count: int) -> list[int]:
    """About `count` values in equal ratios, rounded up to multiples of `step`; the last is `most`.

    A least value of 0 or 1 stands beside the multiples, which then begin at `step`.
    """
    if count <= 1 or most <= 0:
        return [max(most, 0)]
    start = step if least in (0, 1) else least
    found = {
        round_up(int(-(-(start * (most / start) ** (i / (count - 1)) - _NOISE) // 1)), step)
        for i in range(count)
    }
    if least in (0, 1):
        found.add(least)
    return sorted({min(value, most) for value in found})


def padded_range(least: int, step: int, most: int, pad_most: int, pad_percent: int) -> list[int]:
    """Multiples of `step`, of which those are left out that save little.

    From one value to the next, padding is at most `pad_percent` of the larger one and at most
    `pad_most` (0: no limit of its own). Below `step` values double.
    """
    pad_most = pad_most or most
    found = [least]
    current = least
    while current <= most:
        last = found[-1]
        if current <= step:
            following = 2 * last or 1
            if following <= most:
                found.append(following)
        else:
            following = current + step
            padding = following - last - 1
            too_much = padding * 100 > pad_percent * following or padding > pad_most
            if (too_much or current % pad_most == 0) and current != last:
                found.append(current)
        current = following
    return found if most in found else [*found, most]
