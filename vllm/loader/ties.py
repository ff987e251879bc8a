"""Heads that the config ties to the embedding while the checkpoint has one of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from vllm.loader.stream import tensors_named

ROWS_AT_ONCE: Final = 1024  # so that what differs is found early, and equal ones need no copy


def broken_ties(
    ties: Mapping[str, str], files: Sequence[Path], dtype: torch.dtype
) -> dict[str, str]:
    """Those of `ties` (tensor -> the one it is taken to equal) that the checkpoint contradicts.

    Reads no data unless the checkpoint has both. Raises LoadError.
    """
    if not ties:
        return {}
    found = tensors_named(files, {*ties, *ties.values()})
    return {
        name: source
        for name, source in ties.items()
        if name in found and source in found and not _are_equal(found[name], found[source], dtype)
    }


def _are_equal(left: Tensor, right: Tensor, dtype: torch.dtype) -> bool:
    """Once they are in `dtype`: a copy may have been saved in another one."""
    if left.shape != right.shape:
        return False
    pairs = zip(left.split(ROWS_AT_ONCE), right.split(ROWS_AT_ONCE), strict=True)
    return all(torch.equal(a.to(dtype), b.to(dtype)) for a, b in pairs)
