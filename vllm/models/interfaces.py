"""What the engine asks of a model, and what the loader does."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn

from vllm.device.attention import AttentionMetas
from vllm.device.launch import ForwardInputs
from vllm.layers.cached_attention import Attention
from vllm.layers.context import ModelContext
from vllm.layers.weights import Rule


class Model(nn.Module, ABC):
    """A causal language model over flat tokens."""

    # Checkpoint names this model reads; the first rule that matches a name decides.
    weights: ClassVar[tuple[Rule, ...]] = ()
    has_stages: ClassVar[bool] = False  # whether it builds and runs the layers of a stage alone

    def __init__(self, context: ModelContext) -> None:
        """Declare all layers. Raises ConfigError if the model cannot run as configured."""
        super().__init__()

    def tied_weights(self) -> Mapping[str, str]:
        """Checkpoint names of tensors that this model takes from others, to the names of those."""
        return {}

    def ignored_weights(self) -> tuple[str, ...]:
        """Regular expressions of checkpoint names that are rightly not read."""
        return ()

    def is_elsewhere(self, parameter: str) -> bool:
        """Whether `parameter`, by its path here, belongs to another stage of the pipeline."""
        return False

    @abstractmethod
    def forward(self, inputs: ForwardInputs, metas: AttentionMetas) -> Tensor:
        """Hidden states after the final norm, [T, H]. Writes the tokens' keys and values.

        A pipeline stage before the last gives what the next one takes as StageInputs.
        """

    @abstractmethod
    def logits(self, hidden: Tensor) -> Tensor:
        """[S, H] -> [S, V] float32."""

    def greatest(self, hidden: Tensor) -> Tensor | None:
        """`ops.greatest` of what `logits` gives, [S] int32, without it; None: it takes that."""
        return None

    def attention_layers(self) -> Mapping[str, Attention]:
        """Every layer that has a KV cache, by name, in layer order."""
        return {name: m for name, m in self.named_modules() if isinstance(m, Attention)}
