"""StageLink: how hidden states get from one stage of a pipeline to the next."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor


class StageLink(ABC):
    """A rank's connections to the stages before and after its own.

    Every stage calls it once per launch, in the same order, outside of captured graphs.
    """

    @abstractmethod
    def send(self, hidden: Tensor) -> None:
        """Queue hidden states [T, H] for the next stage. Their memory may be used again then."""

    @abstractmethod
    def receive(self, out: Tensor) -> None:
        """Fill `out` [T, H] with what the stage before sent for this launch."""

    def where(self) -> str:
        """What this rank waits for, and from which stage; "" if for nothing. Any thread may ask."""
        return ""
