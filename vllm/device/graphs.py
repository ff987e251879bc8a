"""Running the model on a launch: eagerly, or from a captured graph where a device has them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from vllm.device.attention import AttentionBackend, AttentionMetas
from vllm.device.launch import ForwardInputs, ShapeKey


class Forward(nn.Module):
    """One launch of a model: what a graph captures.

    The plans of attention are expanded here, within the graph, by the backends of the KV groups.
    """

    def __init__(self, model: nn.Module, backends: Sequence[AttentionBackend]) -> None:
        super().__init__()
        self.model = model
        self.backends = tuple(backends)

    def forward(self, inputs: ForwardInputs, metas: AttentionMetas) -> Tensor:
        """Hidden states [T, H]. `metas` are what `AttentionBackend.plan` made, by KV group."""
        expanded = [
            backend.expand(meta) for backend, meta in zip(self.backends, metas, strict=True)
        ]
        hidden: Tensor = self.model(inputs, expanded)
        return hidden


class GraphRunner(ABC):
    """Runs launches; may have captured some keys beforehand."""

    @abstractmethod
    def capture(
        self, key: ShapeKey, forward: Forward, inputs: ForwardInputs, metas: AttentionMetas
    ) -> None:
        """Prepare `key` with inputs of its shape; called during warm-up."""

    @abstractmethod
    def run(
        self, key: ShapeKey, forward: Forward, inputs: ForwardInputs, metas: AttentionMetas
    ) -> Tensor:
        """Hidden states [T, H] of a launch. A key that was never captured runs all the same."""

    def close(self) -> None:
        """Free what was captured."""


class EagerRunner(GraphRunner):
    """Runs every launch as it is."""

    def capture(
        self, key: ShapeKey, forward: Forward, inputs: ForwardInputs, metas: AttentionMetas
    ) -> None:
        """Nothing to prepare."""

    def run(
        self, key: ShapeKey, forward: Forward, inputs: ForwardInputs, metas: AttentionMetas
    ) -> Tensor:
        hidden: Tensor = forward(inputs, metas)
        return hidden
