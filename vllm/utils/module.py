"""Modules that are called often."""

from __future__ import annotations

from typing import Any, NoReturn

from torch import nn


class DirectModule(nn.Module):
    """A module whose call is its forward.

    What nn.Module does around it (hooks, tracing) nobody uses here, and it takes as long as a small
    op: a tenth of a step of a small model. Units that are compiled by themselves, such as a model's
    layers, cannot be of this kind: their compiled form is called by what is left out here.
    """

    def __call__(self, *args: Any) -> Any:
        return self.forward(*args)

    def compile(self, *args: Any, **options: Any) -> NoReturn:
        raise AssertionError(f"{type(self).__name__} would not call what is compiled of it")
