"""A stage changes the logits of the rows that want it, in the order of STAGES."""

from __future__ import annotations

from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vllm.sample.interface import SampleRows
from vllm.sample.state import Want

# What a forbidden token gets: less than any logit, yet finite, so that where bans collide (every
# allowed token is a bad word) a token is still drawn, and from the allowed ones, which use -inf.
FORBIDDEN: Final = -1e30

BoolArray = NDArray[np.bool_]


class Stage(Protocol):
    want: Want
    on_host: bool  # reads values, and so the device waits for the host anyway

    def wanted(self, rows: SampleRows) -> BoolArray:
        """[S]: which of `rows`, all of which have the flag `want`, need it for this token."""
        ...

    def apply(self, logits: Tensor, rows: SampleRows) -> Tensor:
        """Logits [P, V] float32 of rows that want it, changed in place or not."""
        ...


class FlagStage:
    """A stage that every row with its flag wants, at every token."""

    want: Want
    on_host = False

    def wanted(self, rows: SampleRows) -> BoolArray:
        return np.ones(len(rows.slots_np), np.bool_)
