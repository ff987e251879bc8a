"""Modules that are called often."""

from __future__ import annotations

from typing import Any

from torch import nn


class DirectModule(nn.Module):
    """A module whose call is its forward.

    What nn.Module does around it (hooks, tracing) nobody uses here, and it takes as long as a small
    op: a tenth of a step of a small model.
    """

    def __call__(self, *args: Any) -> Any:
        return self.forward(*args)
