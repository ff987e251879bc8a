"""What a layer offers the loader: the places its checkpoint tensors go to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn


class Target(Protocol):
    """Where a tensor is loaded to: a view of a parameter, or what brings it into its layout."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def copy_(self, source: Tensor, /) -> object:
        """Take `source`, which has `shape` and any plain dtype."""


@dataclass(frozen=True, slots=True)
class Slot:
    """One checkpoint tensor's place in a parameter.

    `target` is what to fill. Of a source of shape `source_shape` this rank keeps
    [start, start + length) along `dim`; dim -1 means all of it.
    """

    parameter: str  # name within the layer
    target: Target
    source_shape: tuple[int, ...]
    part: str = ""
    expert: int = -1
    dim: int = -1
    start: int = 0

    def local(self, source: Tensor) -> Tensor:
        """The share of `source`, which has `source_shape`, that this rank keeps."""
        if self.dim < 0:
            return source
        return source.narrow(self.dim, self.start, self.target.shape[self.dim])


class Loadable(nn.Module):
    """A layer with weights of its own. By default each parameter is one whole tensor."""

    def slots(self) -> Iterator[Slot]:
        for name, parameter in self.named_parameters(recurse=False):
            yield Slot(name, parameter.data, tuple(parameter.shape))

    def finish(self) -> None:
        """Called once, when all weights are loaded: pack, absorb, transpose."""


@dataclass(frozen=True, slots=True)
class Rule:
    """Checkpoint tensors named like `source` go to the parameter named like `parameter`.

    Names may contain fields in braces: {w} matches one component, {any} anything, others such as
    {layer} and {expert} a number; `parameter` repeats the fields it needs. A source with several
    `parts` holds them stacked along its first dimension, after that of the experts where
    `all_experts` says that it holds every expert.
    """

    source: str
    parameter: str
    parts: tuple[str, ...] = ("",)
    all_experts: bool = False
