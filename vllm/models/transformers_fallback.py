"""Any causal language model of transformers whose attention can be exchanged for ours.

The checkpoint's own modules run, over one flat sequence of all tokens of a launch; only attention,
which knows of requests, is ours. Correct first: nothing here is fused.
"""

from __future__ import annotations

import copy
import itertools
import re
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.modeling_outputs import MoeModelOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from vllm.device.attention import AttentionMetas, AttentionSpec
from vllm.device.launch import StageInputs, TokenInputs
from vllm.errors import ConfigError
from vllm.layers.cached_attention import Attention
from vllm.layers.context import ModelContext
from vllm.layers.rope.parameters import RopeParameters
from vllm.layers.rope.table import tabulate
from vllm.layers.shapes import EVERYTHING, Share
from vllm.layers.weights import Destination, Loadable, Rule
from vllm.models.decoder import GATED_NAMES, experts_weights
from vllm.models.interfaces import Model
from vllm.models.registry import ModelRegistry
from vllm.models.transformers_ranks import has_experts, share_modules
from vllm.models.transformers_stages import CutModel, Uncuttable

_NUMBERS = itertools.count()  # of the models built in this process
# transformers exchanges functions of torch while it builds one, and would put back the wrong ones.
_BUILDING = threading.Lock()
# Frequencies that transformers changes with the longest request of a batch.
FOLLOWING_ROPES = {"dynamic", "longrope"}
LAYER_TYPES = {"full_attention", "sliding_attention"}
# Arguments of attention that say nothing our metadata does not; any other one is a feature.
HARMLESS = {
    "cache_position",
    "dropout",
    "is_causal",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "position_embeddings",
    "position_ids",
    "use_cache",
}
REMEDY = "Serve it with transformers itself, or register an implementation with ModelRegistry."
EXPERTS, STACKED = "{any}.mlp.experts", ("gate_up_proj", "down_proj")
STACKS = tuple(f".experts.{name}" for name in STACKED)


@dataclass
class _Output(MoeModelOutputWithPast):
    """With every field that some model takes from its base model."""

    cross_attentions: Any = None


class TransformersModel(Model, Loadable):
    """The module tree is split: `base` computes hidden states, `shell` is all around it."""

    weights: ClassVar[tuple[Rule, ...]] = (
        *experts_weights(EXPERTS, EXPERTS, GATED_NAMES, STACKED),
        *experts_weights("{any}.block_sparse_moe.experts", EXPERTS, ("w1", "w3", "w2"), STACKED),
        Rule("{any}.block_sparse_moe.gate.weight", "{any}.mlp.gate.weight"),
        Rule("{any}", "{any}"),
    )
    has_stages: ClassVar[bool] = True

    def __init__(self, context: ModelContext) -> None:
        super().__init__(context)
        self.context = context
        # transformers writes to the config of a model it builds.
        config = context.hf_config
        if not isinstance(config, PretrainedConfig):  # it was read without transformers
            config = config.full()
        self.hf_config = copy.deepcopy(config)
        self.attend = nn.ModuleDict()  # by number of the layer
        self.metas: AttentionMetas = ()
        self.call: Callable[..., Tensor] = self._record
        self.found: dict[int, AttentionSpec] = {}
        self.shell = self._build()
        self.prefix: str = self.shell.base_model_prefix
        self.stage = context.stage(self.hf_config.num_hidden_layers)
        self._ties = _ties(self.shell)
        of_all_stages = [name for name, _ in _own_tensors(self.shell)]
        self.cut = self._cut()
        self.shares = self._share()
        self.base: nn.Module = self.shell.base_model
        self.shell.to(context.device)
        self._tensors = dict(_own_tensors(self.shell))
        self._elsewhere = {_parameter(name) for name in of_all_stages if name not in self._tensors}
        self._freeze_rope()
        setattr(self.shell, self.prefix, _Passthrough())

    def _build(self) -> PreTrainedModel:
        hf, config = self.hf_config, self.context.config.model
        try:
            # What other ranks keep takes no memory of the device.
            is_whole = self.context.tp.size == self.context.pp.size == 1
            device = self.context.device if is_whole else torch.device("cpu")
            with _BUILDING, torch.device(device), no_init_weights():
                shell = AutoModelForCausalLM.from_config(
                    hf,
                    dtype=self.context.dtype,
                    attn_implementation=_register(self),
                    trust_remote_code=config.trust_remote_code,
                )
        except (ValueError, ImportError, KeyError, TypeError, AttributeError) as error:
            raise self._refusal(f"transformers cannot build it ({error})") from error
        shell.tie_weights()
        kinds = set(hf.to_dict().get("layer_types") or ()) - LAYER_TYPES
        if kinds:
            raise self._refusal(f"it has layers of type {', '.join(sorted(kinds))}")
        if hf.to_dict().get("quantization_config"):
            raise self._refusal("its weights are quantized")
        if hf.is_encoder_decoder:
            raise self._refusal("it has an encoder")
        if not shell._supports_attention_backend:
            raise self._refusal("its attention in transformers cannot be exchanged")
        if shell._is_stateful:
            raise self._refusal("it keeps a recurrent state")
        return shell

    def _cut(self) -> CutModel | None:
        """Leave to other stages of a pipeline what is theirs; None: there are none."""
        if self.context.pp.size == 1:
            return None
        try:
            return CutModel(self.shell, self.shell.base_model, self.hf_config, self.stage)
        except Uncuttable as error:
            raise self._uncuttable(error) from error

    def _share(self) -> Mapping[str, Share]:
        """Of several ranks, what this one keeps of parameters: by name, without those it has all
        of."""
        if self.context.tp.size == 1:
            return {}
        if self.context.divides_experts and has_experts(self.hf_config):
            raise self._refusal(
                "ranks share its experts by their width, and --enable-expert-parallel asks for "
                f"whole ones. Ranks can have whole ones of {_native_names()}",
                "Leave --enable-expert-parallel out.",
            )
        try:
            shares = share_modules(self.shell, self.prefix, self.hf_config, self.context.tp)
        except KeyError as error:
            raise self._refusal(
                "several ranks share modules as transformers plans it, and its plan is not known "
                f"here ({error.args[0]}). They can share those of {_native_names()}",
                "Leave --tensor-parallel-size out.",
            ) from error
        return shares

    def _freeze_rope(self) -> None:
        """Make rotation depend on the position alone (see layers.rope.table.Rotary)."""
        hf = self.hf_config
        for name, module in list(self.base.named_modules()):
            kind = vars(module).get("rope_type")
            if isinstance(kind, dict) and FOLLOWING_ROPES & set(kind.values()):
                raise self._refusal("its rotary embedding follows the longest request of a batch")
            if isinstance(kind, str) and kind in FOLLOWING_ROPES:
                head_dim = hf.to_dict().get("head_dim") or hf.hidden_size // hf.num_attention_heads
                parameters = RopeParameters.from_config(hf, head_dim)
                self.base.set_submodule(name, _TabledRope(parameters, self.context))

    def destinations(self) -> Iterator[Destination]:
        size = self.context.tp.size
        for name, tensor in self._tensors.items():
            share = self.shares.get(name, EVERYTHING)
            if not name.endswith(STACKS):
                shape = share.whole(tuple(tensor.shape), size)
                yield Destination(name, partial(_same, tensor), shape, share=share)
                continue
            parts = ("gate", "up") if name.endswith("gate_up_proj") else ("",)
            for expert, stacked in enumerate(tensor):
                for part, target in zip(parts, stacked.chunk(len(parts)), strict=True):
                    open_target, shape = partial(_same, target), tuple(target.shape)
                    shape = share.whole(shape, size)
                    parameter = _parameter(name)
                    yield Destination(parameter, open_target, shape, part, expert, share=share)

    def tied_weights(self) -> Mapping[str, str]:
        return self._ties

    def ignored_weights(self) -> tuple[str, ...]:
        return tuple(map(re.escape, self._ties))

    def is_elsewhere(self, parameter: str) -> bool:
        return parameter in self._elsewhere

    def finish(self) -> None:
        """Find out, by computing one token, what each attention layer asks for."""
        if self.attend:  # these weights are not the first
            return
        try:
            with nullcontext() if self.cut is None else self.cut.watched():
                self._compute_one()
        except (ConfigError, torch.OutOfMemoryError):
            raise
        except Uncuttable as error:
            raise self._uncuttable(error) from error
        except Exception as error:
            reason = f"a first token could not be computed ({type(error).__name__}: {error})"
            remedy = REMEDY if self.cut is None else f"Try --pipeline-parallel-size 1. {REMEDY}"
            raise self._refusal(reason, remedy) from error
        layers = self.stage.layers
        if sorted(self.found) != list(layers):
            raise self._refusal(
                f"{len(self.found)} of {len(layers)} layers use exchangeable attention"
            )
        for i in layers:
            self.attend[str(i)] = self.context.attention(self.found[i])
        self.call = self._attend

    def _compute_one(self) -> None:
        """A first token, whose values say nothing."""
        context = self.context
        zero = torch.zeros(1, dtype=torch.int32, device=context.device)
        if self.stage.is_first:
            hidden = self(TokenInputs(zero, zero), ())
        else:
            row = torch.zeros(
                1, self.hf_config.hidden_size, dtype=context.dtype, device=context.device
            )
            hidden = self(StageInputs(row, zero), ())
        if self.stage.is_last:
            self.logits(hidden)

    def forward(self, inputs: TokenInputs | StageInputs, metas: AttentionMetas) -> Tensor:
        self.metas = metas
        if isinstance(inputs, StageInputs):
            assert self.cut is not None
            hidden = inputs.hidden.unsqueeze(0)
            self.cut.enter(hidden)
            given = {"inputs_embeds": hidden}
        else:
            given = {"input_ids": inputs.token_ids.long().unsqueeze(0)}
        position_ids = inputs.positions.long().unsqueeze(0)
        out = self.base(**given, position_ids=position_ids, use_cache=False)
        hidden = out.last_hidden_state if self.stage.is_last else self.cut.left()
        return hidden.squeeze(0)

    def logits(self, hidden: Tensor) -> Tensor:
        out = self.shell(inputs_embeds=hidden.unsqueeze(0), use_cache=False)
        return out.logits.squeeze(0).float()

    def _attend(self, module: nn.Module, q: Tensor, k: Tensor, v: Tensor, **_: Any) -> Tensor:
        layer = self.attend[str(module.layer_idx)]
        assert isinstance(layer, Attention)
        flat = (x.squeeze(0).transpose(0, 1).contiguous() for x in (q, k, v))
        return layer(*flat, self.metas).unflatten(-1, (q.shape[1], -1)).unsqueeze(0)

    def _record(self, module: nn.Module, q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        """Stands in for attention in the first call; the result has the right shape."""
        scale, softcap = options.pop("scaling", None), options.pop("softcap", None)
        window = options.pop("sliding_window", None)
        foreign = [name for name, x in options.items() if name not in HARMLESS and x is not None]
        if foreign:
            raise self._refusal(f"its attention takes {', '.join(sorted(foreign))}")
        if module.layer_idx in self.found:
            raise self._refusal(f"layer {module.layer_idx} attends more than once")
        head_dim = q.shape[-1]
        self.found[module.layer_idx] = AttentionSpec(
            num_heads=q.shape[1],
            num_kv_heads=k.shape[1],
            head_dim=head_dim,
            value_dim=v.shape[-1],
            scale=head_dim**-0.5 if scale is None else scale,
            dtype=self.context.cache_dtype,
            window=window,
            softcap=softcap or 0.0,
        )
        return q.new_zeros(1, q.shape[2], q.shape[1], v.shape[-1])

    def _uncuttable(self, error: Uncuttable) -> ConfigError:
        return self._refusal(
            "the stages of a pipeline are cut as transformers plans it, and its plan for this "
            f"model cannot be followed here ({error})",
            "Use --pipeline-parallel-size 1; --tensor-parallel-size shares every layer instead.",
        )

    def _refusal(self, reason: str, remedy: str = REMEDY) -> ConfigError:
        name = self.context.config.model.architecture
        return ConfigError(f"cannot run {name} through transformers: {reason}. {remedy}")


def _native_names() -> str:
    return ", ".join(ModelRegistry.get_supported_archs())


class _Passthrough(nn.Module):
    """In place of the base model: hands on the hidden states it is given."""

    def forward(self, *_: Any, inputs_embeds: Tensor, **__: Any) -> _Output:
        return _Output(last_hidden_state=inputs_embeds)


class _TabledRope(nn.Module):
    """In place of a rotary embedding that follows the longest request of a batch."""

    def __init__(self, parameters: RopeParameters, context: ModelContext) -> None:
        super().__init__()
        cos, sin = tabulate(parameters, context.config.model.max_model_len)
        self.register_buffer("cos", torch.cat((cos, cos), -1).to(context.device), persistent=False)
        self.register_buffer("sin", torch.cat((sin, sin), -1).to(context.device), persistent=False)

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Positions [1, T] -> cos and sin [1, T, R] in x's dtype."""
        return self.cos[position_ids].to(x.dtype), self.sin[position_ids].to(x.dtype)


def _same(target: Tensor) -> Tensor:
    return target


def _own_tensors(shell: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """What a checkpoint holds: parameters, each under its first name, and persistent buffers."""
    parameters = dict(shell.named_parameters())
    yield from ((name, p.data) for name, p in parameters.items())
    every = {name for name, _ in shell.named_parameters(remove_duplicate=False)}
    yield from ((name, b) for name, b in shell.state_dict().items() if name not in every)


def _parameter(name: str) -> str:
    """Where tensors of the parameter `name` go: of experts there are several."""
    return f"{name}.weight" if name.endswith(STACKS) else name


def _ties(shell: nn.Module) -> dict[str, str]:
    """Parameters under further names, to their first one."""
    first = {id(p): name for name, p in shell.named_parameters()}
    every = shell.named_parameters(remove_duplicate=False)
    return {name: first[id(p)] for name, p in every if name != first[id(p)]}


def _register(model: TransformersModel) -> str:
    """Make `model`'s attention known to transformers; the name it is known under.

    There is no mask: transformers makes none for a name without a mask function.
    """
    name = f"vllm-{next(_NUMBERS)}"
    owner = weakref.ref(model)  # the table of transformers is global and keeps what it is given

    def attention(
        module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Any, **options: Any
    ) -> tuple[Tensor, None]:
        """q, k, v [1, heads, T, D] -> [1, T, N, Dv]"""
        found = owner()
        assert found is not None and mask is None, name
        return found.call(module, q, k, v, **options), None

    ALL_ATTENTION_FUNCTIONS.register(name, attention)
    return name
