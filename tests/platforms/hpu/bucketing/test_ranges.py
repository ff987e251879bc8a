"""The documented examples of every strategy, to the number."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm.platforms.hpu.bucketing.ranges import exponential_range, linear_range, padded_range


@pytest.mark.parametrize(
    ("axis", "expected"),
    [
        ((2, 32, 64), [2, 4, 8, 16, 32, 64]),
        ((128, 128, 512), [128, 256, 384, 512]),
        ((1, 32, 128), [1, 2, 4, 8, 16, 32, 64, 96, 128]),
        ((0, 1, 0), [0]),
        ((0, 2, 5), [0, 2, 4]),
        ((1, 32, 256), [1, 2, 4, 8, 16, 32, 64, 96, 128, 160, 192, 224, 256]),
    ],
)
def test_linear_ranges(axis: tuple[int, int, int], expected: list[int]) -> None:
    assert linear_range(*axis) == expected


@pytest.mark.parametrize(
    ("axis", "expected"),
    [
        ((128, 128, 2048, 10), [128, 256, 384, 512, 640, 896, 1152, 1536, 2048]),
        (
            (128, 128, 8192, 13),
            [128, 256, 384, 512, 768, 1024, 1536, 2048, 2944, 4096, 5888, 8192],
        ),
        ((0, 1, 192, 9), [0, 1, 2, 4, 8, 14, 27, 52, 100, 192]),
        ((1, 2, 256, 9), [1, 2, 4, 8, 14, 24, 42, 78, 140, 256]),
        ((1, 2, 64, 7), [1, 2, 4, 8, 12, 22, 36, 64]),
        ((128, 128, 2048, 11), [128, 256, 384, 512, 768, 896, 1280, 1664, 2048]),
        ((0, 1, 31, 6), [0, 1, 2, 4, 8, 16, 31]),
        ((1, 64, 2048, 12), [1, 64, 128, 192, 256, 320, 448, 640, 832, 1152, 1536, 2048]),
        ((1, 2, 1, 1), [1]),
    ],
)
def test_exponential_ranges(axis: tuple[int, int, int, int], expected: list[int]) -> None:
    assert exponential_range(*axis) == expected


@pytest.mark.parametrize(
    ("axis", "expected"),
    [
        ((0, 8, 64, 64, 0), [0, 1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64]),
        ((0, 8, 64, 64, 50), [0, 1, 2, 4, 8, 16, 32, 64]),
        ((0, 8, 64, 16, 50), [0, 1, 2, 4, 8, 16, 32, 48, 64]),
        ((16, 16, 128, 32, 25), [16, 32, 48, 64, 80, 96, 128]),
    ],
)
def test_padded_ranges(axis: tuple[int, int, int, int, int], expected: list[int]) -> None:
    assert padded_range(*axis) == expected


SIZES = st.integers(1, 5000)


@given(least=st.integers(0, 64), step=st.integers(1, 256), most=SIZES, count=st.integers(1, 20))
def test_exponential_ranges_ascend_to_their_maximum(
    least: int, step: int, most: int, count: int
) -> None:
    found = exponential_range(least, step, most, count)
    assert found == sorted(set(found)) and found[-1] == most


@given(step=st.integers(1, 64), most=st.integers(64, 4096), limit=SIZES, percent=st.integers(0, 50))
def test_padded_ranges_keep_their_bounds_beyond_the_first_step(
    step: int, most: int, limit: int, percent: int
) -> None:
    found = padded_range(step, step, most, limit, percent)
    assert found == sorted(set(found)) and found[-1] == most
    for low, high in itertools.pairwise(found):
        padding = high - low - 1
        # A single step is the least there can be between two values.
        assert high - low <= step or high <= 2 * step or padding <= limit
        assert high - low <= step or high <= 2 * step or padding * 100 <= percent * high
