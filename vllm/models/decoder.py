"""The decoder that most families are: what they share, so that each states only what differs."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vllm.device.attention import AttentionMetas
from vllm.device.launch import StageInputs, TokenInputs
from vllm.layers.attention import AttentionShape, SelfAttention
from vllm.layers.context import ModelContext
from vllm.layers.embedding import Embedding, Head, TiedHead
from vllm.layers.logits import LogitsTransform
from vllm.layers.mlp import GatedMLP
from vllm.layers.norm import Norm, RMSNorm
from vllm.layers.rope import NoRope, Rope, RopeParameters, Rotary
from vllm.layers.weights import Rule
from vllm.models.interfaces import Model


def attention_weights(layer: str = "model.layers.{layer}.self_attn") -> tuple[Rule, ...]:
    """Separate q, k, v and o projections, as Llama names them."""
    ours = "layers.{layer}.attention"
    qkv = (Rule(f"{layer}.{p}_proj.{{w}}", f"{ours}.qkv.{{w}}", (p,)) for p in "qkv")
    return (*qkv, Rule(f"{layer}.o_proj.{{w}}", f"{ours}.out.{{w}}"))


def gated_mlp_weights(theirs: str, ours: str) -> tuple[Rule, ...]:
    """gate, up and down projections, as Llama names them."""
    return (
        Rule(f"{theirs}.gate_proj.{{w}}", f"{ours}.gate_up.{{w}}", ("gate",)),
        Rule(f"{theirs}.up_proj.{{w}}", f"{ours}.gate_up.{{w}}", ("up",)),
        Rule(f"{theirs}.down_proj.{{w}}", f"{ours}.down.{{w}}"),
    )


def experts_weights(
    theirs: str,
    ours: str,
    names: tuple[str, str, str],
    stacked: tuple[str, str] = ("w13", "w2"),
) -> tuple[Rule, ...]:
    """Experts one by one, with `names` for gate, up and down, or all in one tensor.

    `stacked` are the parameters with all experts: gate and up, and down.
    """
    gate, up, down = (f"{theirs}.{{expert}}.{name}.{{w}}" for name in names)
    w13, w2 = (f"{ours}.{name}" for name in stacked)
    return (
        Rule(gate, f"{w13}.{{w}}", ("gate",)),
        Rule(up, f"{w13}.{{w}}", ("up",)),
        Rule(down, f"{w2}.{{w}}"),
        Rule(f"{theirs}.gate_up_proj", f"{w13}.weight", ("gate", "up"), all_experts=True),
        Rule(f"{theirs}.down_proj", f"{w2}.weight", all_experts=True),
    )


GATED_NAMES = ("gate_proj", "up_proj", "down_proj")
MLP_WEIGHTS = gated_mlp_weights("model.layers.{layer}.mlp", "layers.{layer}.mlp")
OUTER_WEIGHTS = (
    Rule("model.embed_tokens.weight", "embed.weight"),
    Rule("model.norm.weight", "norm.weight"),
    Rule("lm_head.{w}", "head.{w}"),
)
NORM_WEIGHTS = (
    Rule("model.layers.{layer}.input_layernorm.weight", "layers.{layer}.norm.weight"),
    Rule("model.layers.{layer}.post_attention_layernorm.weight", "layers.{layer}.mlp_norm.weight"),
)
DECODER_WEIGHTS = (*OUTER_WEIGHTS, *NORM_WEIGHTS, *attention_weights(), *MLP_WEIGHTS)


class DecoderLayer(nn.Module):
    """Attention and MLP, each normalised before and added to the residual after.

    x [T, H] is the output of the block before, not yet added to residual [T, H]. With
    `residual_scale` s, the blocks' outputs are multiplied by s before they are added.
    """

    def __init__(
        self,
        norm: Norm,
        attention: nn.Module,
        mlp_norm: Norm,
        mlp: nn.Module,
        residual_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.norm = norm
        self.attention = attention
        self.mlp_norm = mlp_norm
        self.mlp = mlp
        self.residual_scale = residual_scale

    def forward(
        self, x: Tensor, residual: Tensor, rope: Rope, metas: AttentionMetas
    ) -> tuple[Tensor, Tensor]:
        x, residual = self.norm.add(x, residual)
        x = self.scaled(self.attention(x, rope, metas))
        x, residual = self.mlp_norm.add(x, residual)
        return self.scaled(self.mlp(x)), residual

    def scaled(self, x: Tensor) -> Tensor:
        return x if self.residual_scale == 1.0 else x * self.residual_scale


class Decoder(Model):
    """Embedding, layers, final norm and head of a decoder-only model."""

    weights: ClassVar[tuple[Rule, ...]] = DECODER_WEIGHTS
    has_stages: ClassVar[bool] = True

    def __init__(self, context: ModelContext) -> None:
        super().__init__(context)
        self.context = context
        self.hf_config: Any = context.hf_config
        self.hidden: int = self.hf_config.hidden_size
        self.stage = context.stage(self.hf_config.num_hidden_layers)
        # A tied head multiplies with the embedding's weight, wherever that is loaded once more.
        if self.stage.is_first or (self.stage.is_last and self.hf_config.tie_word_embeddings):
            self.embed = Embedding(self.hf_config.vocab_size, self.hidden, context)
        self.rope = self.make_rope()
        # Under the numbers that they have in the whole model.
        self.layers = nn.ModuleDict({str(i): self.layer(i) for i in self.stage.layers})
        if self.stage.is_last:
            self.norm = self.make_norm()
            self.head = self.make_head()
            self.transform = self.logits_transform()
            # Kept as what they are: finding a submodule takes as long as calling it.
            self._greatest = self.head.greatest
            self._scores_are_logits = self.transform.is_nothing

    def layer(self, i: int) -> nn.Module:
        """Layer i: called as DecoderLayer is."""
        return DecoderLayer(
            norm=self.make_norm(),
            attention=self.attention(i),
            mlp_norm=self.make_norm(),
            mlp=self.mlp(i),
        )

    @abstractmethod
    def attention(self, i: int) -> nn.Module:
        """(x [T, H], rope, metas) -> [T, H] of layer i."""

    def mlp(self, i: int) -> nn.Module:
        """[T, H] -> [T, H] of layer i."""
        hf = self.hf_config
        return GatedMLP(self.hidden, hf.intermediate_size, hf.hidden_act, self.context)

    @property
    def head_dim(self) -> int:
        stated = self.hf_config.to_dict().get("head_dim")
        return int(stated or self.hidden // self.hf_config.num_attention_heads)

    def make_rope(self) -> Rotary | NoRope:
        return Rotary(RopeParameters.from_config(self.hf_config, self.head_dim), self.context)

    def make_norm(self) -> Norm:
        return RMSNorm(self.hidden, self.hf_config.rms_norm_eps, self.context)

    def make_head(self) -> Head | TiedHead:
        if self.hf_config.tie_word_embeddings:
            return TiedHead(self.embed)
        return Head(self.hf_config.vocab_size, self.hidden, self.context)

    def tied_weights(self) -> Mapping[str, str]:
        names = {rule.parameter: rule.source for rule in self.weights}
        if not self.hf_config.tie_word_embeddings or "head.{w}" not in names:
            return {}
        return {names["head.{w}"].format(w="weight"): names["embed.weight"]}

    def ignored_weights(self) -> tuple[str, ...]:
        return tuple(map(re.escape, self.tied_weights()))

    def is_elsewhere(self, parameter: str) -> bool:
        room, _, rest = parameter.partition(".")
        if room == "layers":
            layer = rest.partition(".")[0]
            return layer.isdecimal() and self._is_of_other_stage(int(layer))
        is_ours = self.stage.is_last if room in ("norm", "head") else self.stage.is_first
        return not is_ours and room not in self._modules

    def _is_of_other_stage(self, layer: int) -> bool:
        return layer not in self.stage.layers and layer < self.hf_config.num_hidden_layers

    def logits_transform(self) -> LogitsTransform:
        return LogitsTransform()

    def attention_shape(self, **differences: Any) -> AttentionShape:
        """Self-attention as the config's usual fields describe it, with `differences` applied."""
        hf = self.hf_config
        shape = {
            "hidden": self.hidden,
            "num_heads": hf.num_attention_heads,
            "num_kv_heads": hf.num_key_value_heads,
            "head_dim": self.head_dim,
        }
        return AttentionShape(**{**shape, **differences})

    def self_attention(self, **differences: Any) -> SelfAttention:
        return SelfAttention(self.attention_shape(**differences), self.rope, self.context)

    def window(self, i: int) -> int | None:
        """Sliding window of layer i, for configs that list the type of every layer."""
        sliding = self.hf_config.layer_types[i] == "sliding_attention"
        return self.hf_config.sliding_window if sliding else None

    def embed_inputs(self, inputs: TokenInputs) -> Tensor:
        """[T, H], what the first layer reads."""
        return self.embed(inputs.token_ids)

    def forward(self, inputs: TokenInputs | StageInputs, metas: AttentionMetas) -> Tensor:
        is_cut = isinstance(inputs, StageInputs)
        residual = inputs.hidden if is_cut else self.embed_inputs(inputs)
        x = torch.zeros_like(residual)
        rope = self.rope(inputs.positions)
        for layer in self.layers.values():
            x, residual = layer(x, residual, rope, metas)
        if self.stage.is_last:
            return self.norm.add(x, residual)[0]
        # A norm rounds this sum before it normalises: the next stage's first one sees the same.
        return x + residual

    def logits(self, hidden: Tensor) -> Tensor:
        return self.transform(self.head(hidden))

    def greatest(self, hidden: Tensor) -> Tensor | None:
        # A transform that rounds can make two scores equal, of which the first is then meant.
        return self._greatest(hidden) if self._scores_are_logits else None
