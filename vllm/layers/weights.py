"""What a layer offers the loader: tensors it declares, and the places checkpoint tensors go to.

A model is made in four steps (see vllm.loader.build): its layers declare shapes, each gets a method
that stores and multiplies its weight, memory is taken, and tensors are filled in. A layer is
finished when its last tensor is in. Filling it again later writes to the same memory.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol

import torch
from torch import Tensor, nn

from vllm.layers.shapes import EVERYTHING, Share

# Others are quantized values, which mean something only together with their scales.
PLAIN_DTYPES: Final = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_STD = 0.02
# (shape, generator) -> what might lie in a checkpoint; for --load-format dummy.
Random = Callable[[tuple[int, ...], torch.Generator], Tensor]


def random_weights(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Small normal values in float32."""
    return torch.randn(shape, generator=generator) * _STD


class Target(Protocol):
    """Where a tensor is loaded to: a view of a parameter, or what brings it into its layout."""

    def copy_(self, source: Tensor, /) -> object:
        """Take `source`, which has this rank's shape and one of the accepted dtypes."""


@dataclass(frozen=True, slots=True)
class Destination:
    """One checkpoint tensor's place in a layer.

    The tensor has `shape`, of which this rank keeps a `share`. `open` gives what to fill, and may
    take memory for it; it is ELSEWHERE if other ranks keep all of the tensor.
    """

    parameter: str  # name within the layer
    open: Callable[[], Target] | None
    shape: tuple[int, ...]
    part: str = ""
    expert: int = -1
    share: Share = EVERYTHING
    dtypes: tuple[torch.dtype, ...] = PLAIN_DTYPES
    stack_dim: int = 0  # along which the checkpoint may hold several parts in one tensor, or WHOLE
    random: Random = random_weights

    def fill(self, source: Tensor) -> None:
        """Take this rank's share of `source`, which has `shape`."""
        assert self.open is not None, self.parameter
        self.open().copy_(self.share.of(source))


WHOLE: Final = -1  # `Destination.stack_dim` of a tensor that means all the parts it comes with
ELSEWHERE: Final = None  # `Destination.open` of a tensor that other ranks keep


def parameter(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> nn.Parameter:
    """Uninitialised memory of a layer; the loader fills it."""
    return nn.Parameter(torch.empty(shape, dtype=dtype, device=device), requires_grad=False)


class Loadable(nn.Module):
    """A layer with weights of its own. By default each declared tensor is one of the checkpoint."""

    device: torch.device  # where the weights are, once there is memory

    def __init__(self) -> None:
        super().__init__()
        self._declared: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
        self._staged: dict[Hashable, Tensor] = {}

    def declare(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        """Have `allocate` set the attribute `name` to a parameter of `shape`."""
        self._declared[name] = (shape, dtype)

    def allocate(self, device: torch.device) -> None:
        """Take the memory of all weights. Called once, after every layer has its method."""
        self.device = device
        for name, (shape, dtype) in self._declared.items():
            self.register_parameter(name, parameter(shape, dtype, device))

    def destinations(self) -> Iterator[Destination]:
        """Where checkpoint tensors go. They may be opened once there is memory."""
        for name, (shape, _) in self._declared.items():
            yield Destination(name, partial(self._data, name), shape)

    def finish(self) -> None:
        """Pack, absorb, transpose what was filled. Called whenever all destinations are filled."""

    def stage(
        self,
        key: Hashable,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Memory for what `finish` needs as it was loaded: taken once per loading."""
        if key not in self._staged:
            self._staged[key] = torch.empty(shape, dtype=dtype, device=device)
        return self._staged[key]

    def unstage_all(self) -> None:
        """Give up what was staged by a loading that failed."""
        self._staged.clear()

    def unstage(self, key: Hashable) -> Tensor:
        """What was staged under `key`; its memory is the caller's from now on."""
        return self._staged.pop(key)

    def _data(self, name: str) -> Tensor:
        data: Tensor = self.get_parameter(name).data
        return data


@dataclass(frozen=True, slots=True)
class Rule:
    """Checkpoint tensors named like `source` go to the parameter named like `parameter`.

    Names may contain fields in braces: {w} matches one component, {any} anything, others such as
    {layer} and {expert} a number; `parameter` repeats the fields it needs. A source with several
    `parts` holds them stacked, after the dimension of the experts where `all_experts` says that it
    holds every expert.
    """

    source: str
    parameter: str
    parts: tuple[str, ...] = ("",)
    all_experts: bool = False
