"""Running the model on a launch: eagerly, or from a captured graph where a device has them."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from vllm.attention.interface import AttentionMetas
from vllm.models.interfaces import ForwardInputs, Model
from vllm.worker.planner import ShapeKey


class GraphRunner(ABC):
    """Calls the model; may have captured the call for some keys beforehand."""

    @abstractmethod
    def capture(
        self, key: ShapeKey, model: Model, inputs: ForwardInputs, metas: AttentionMetas
    ) -> None:
        """Prepare `key` with inputs of its shape; called during warm-up."""

    @abstractmethod
    def run(
        self, key: ShapeKey, model: Model, inputs: ForwardInputs, metas: AttentionMetas
    ) -> Tensor:
        """Hidden states [T, H] of a launch. A key that was never captured runs all the same."""

    def close(self) -> None:
        """Free what was captured."""


class EagerRunner(GraphRunner):
    """Calls the model as it is."""

    def capture(
        self, key: ShapeKey, model: Model, inputs: ForwardInputs, metas: AttentionMetas
    ) -> None:
        """Nothing to prepare."""

    def run(
        self, key: ShapeKey, model: Model, inputs: ForwardInputs, metas: AttentionMetas
    ) -> Tensor:
        hidden: Tensor = model(inputs, metas)
        return hidden
