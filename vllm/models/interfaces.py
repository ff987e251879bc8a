"""What the engine asks of a model, and what the loader does."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple

from torch import Tensor, nn

from vllm.attention.interface import AttentionBackend, AttentionMetas
from vllm.attention.layer import Attention
from vllm.layers.context import ModelContext
from vllm.layers.weights import Rule


class ForwardInputs(NamedTuple):
    """The tokens of one launch."""

    token_ids: Tensor  # [T] int32
    positions: Tensor  # [T] int32


class Model(nn.Module, ABC):
    """A causal language model over flat tokens."""

    # Checkpoint names this model reads; the first rule that matches a name decides.
    weights: ClassVar[tuple[Rule, ...]] = ()

    def __init__(self, context: ModelContext) -> None:
        """Build on `context.device`, weights uninitialised. Raises ConfigError if it cannot run."""
        super().__init__()
        self.backends: Sequence[AttentionBackend] = ()

    def tied_weights(self) -> Mapping[str, str]:
        """Checkpoint names of tensors that this model takes from others, to the names of those."""
        return {}

    def ignored_weights(self) -> tuple[str, ...]:
        """Regular expressions of checkpoint names that are rightly not read."""
        return ()

    @abstractmethod
    def forward(self, inputs: ForwardInputs, metas: AttentionMetas) -> Tensor:
        """Hidden states after the final norm, [T, H]. Writes the tokens' keys and values.

        `metas` are plans: an implementation gives its layers `self.expand(metas)`.
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

    def bind_attention(self, backends: Sequence[AttentionBackend]) -> None:
        """`backends` serve the KV groups, in this order, from now on."""
        self.backends = tuple(backends)

    def expand(self, metas: AttentionMetas) -> AttentionMetas:
        """What the layers attend with, from plans."""
        return [backend.expand(meta) for backend, meta in zip(self.backends, metas, strict=True)]
