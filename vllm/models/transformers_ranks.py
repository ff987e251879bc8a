"""Modules of transformers that several ranks share, as the library's own plan for a model says.

A plan (`base_model_tp_plan` of a config) has a style for modules and parameters. Embedding and head
are in none: every rank has all of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any, Final

import torch.nn.functional as F
from torch import Tensor, nn

from vllm.device.collectives import Collectives
from vllm.layers.shapes import ShardInfo, Share

_WHOLE: Final = {"replicate", "replicated_with_grad_allreduce"}
_COLUMNS: Final = {"colwise", "colwise_gather_output"}
_ROWS: Final = {"rowwise", "rowwise_split_input"}
_SUMMED: Final = "moe_tp_experts"  # each rank has computed a part of what the module gives
# Of parameters with one matrix per expert, the dimension that is shared.
_EXPERTS: Final = {"packed_colwise": 1, "rowwise": 2}
_OF_EXPERTS: Final = {_SUMMED, "packed_colwise"}  # styles that nothing else has
_HEADS: Final = {"attention heads": "num_attention_heads", "KV heads": "num_key_value_heads"}


class SharedLinear(nn.Module):
    """A rank's share of a projection.

    x [*, in] -> [*, out]; of a column-parallel one the rank's outputs, unless it gathers; of a
    row-parallel one the rank's inputs, unless it splits.
    """

    def __init__(self, name: str, linear: nn.Linear, style: str, tp: Collectives) -> None:
        super().__init__()
        self.tp = tp
        self.is_row = style in _ROWS
        self.gathers, self.splits = style == "colwise_gather_output", style == "rowwise_split_input"
        weight, dim = linear.weight, int(self.is_row)
        info = ShardInfo(tp.rank, tp.size)
        start, length = info.span(
            weight.shape[dim], what=f"{'inputs' if dim else 'outputs'} of {name}"
        )
        self.share = Share(dim, start, length)
        local = weight.new_empty(self.share.shape(tuple(weight.shape)))
        self.weight = nn.Parameter(local, requires_grad=False)
        bias = linear.bias
        if bias is not None:
            bias = nn.Parameter(bias.new_empty(self.share.along(0).shape(tuple(bias.shape))), False)
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        if not self.is_row:
            y = F.linear(x, self.weight, self.bias)
            return self.tp.gather(y) if self.gathers else y
        if self.splits:
            x = x.narrow(-1, self.share.start, self.share.length)
        y = self.tp.sum(F.linear(x, self.weight))
        return y if self.bias is None else y + self.bias


def has_experts(hf: Any) -> bool:
    """Whether the plan of `hf` is one of a model with experts."""
    return not _OF_EXPERTS.isdisjoint((hf.base_model_tp_plan or {}).values())


def share_modules(shell: nn.Module, prefix: str, hf: Any, tp: Collectives) -> dict[str, Share]:
    """Replace what ranks share by this rank's share; -> the shares of parameters, by name.

    `prefix` is the name of the module within `shell` that the plan of `hf` describes. Raises
    ConfigError where sizes do not divide, and KeyError with what the plan has and nothing here
    knows.
    """
    styles = {f"{prefix}.{name}": style for name, style in (hf.base_model_tp_plan or {}).items()}
    if not styles:
        raise KeyError("no plan")
    if any(_is_of_heads(name, style) for name, style in styles.items()):
        _check_heads(hf, tp)
    shares: dict[str, Share] = {}
    for name, module in list(shell.named_modules()):
        style = styles.get(_starred(name))
        if style is None or style in _WHOLE:
            continue
        if style == _SUMMED:
            module.register_forward_hook(partial(_sum, tp))
        elif isinstance(module, nn.Linear) and style in _COLUMNS | _ROWS:
            shared = SharedLinear(name, module, style, tp)
            shell.set_submodule(name, shared)
            shares[f"{name}.weight"] = shared.share
            shares[f"{name}.bias"] = shared.share.along(0)
        else:
            raise KeyError(f"{style} for a {type(module).__name__}")
    shares.update(_share_experts(shell, styles, tp))
    return shares


def _share_experts(
    shell: nn.Module, styles: Mapping[str, str], tp: Collectives
) -> dict[str, Share]:
    """Of parameters [E, ...] that the plan names: gates and ups are halves of one."""
    shares = {}
    for name, parameter in list(shell.named_parameters()):
        style = styles.get(_starred(name))
        if style is None or style in _WHOLE:
            continue
        if style not in _EXPERTS or parameter.dim() != 3:
            raise KeyError(f"{style} for a parameter of {parameter.dim()} dimensions")
        dim, halves = _EXPERTS[style], 2 if style == "packed_colwise" else 1
        width = parameter.shape[dim] // halves
        info = ShardInfo(tp.rank, tp.size)
        start, length = info.span(width, what=f"columns of {name}")
        shares[name] = Share(dim - 1, start, length)  # of the matrix of one expert and half
        shape = [*parameter.shape]
        shape[dim] = halves * length
        path, _, attribute = name.rpartition(".")
        local = nn.Parameter(parameter.new_empty(shape), requires_grad=False)
        setattr(shell.get_submodule(path), attribute, local)
    return shares


def _is_of_heads(name: str, style: str) -> bool:
    return style == "colwise" and bool(re.search("attn|attention", name))


def _check_heads(hf: Any, tp: Collectives) -> None:
    for what, field in _HEADS.items():
        count = hf.to_dict().get(field)
        if count is not None:
            ShardInfo(tp.rank, tp.size).span(count, what=what)


def _starred(name: str) -> str:
    return re.sub(r"\b\d+\b", "*", name)


def _sum(tp: Collectives, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return tp.sum(output)
