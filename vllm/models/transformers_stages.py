"""A pipeline stage of a model of transformers, cut as the library's own plan says.

A plan (`base_model_pp_plan` of a config) names the modules of a base model in the order in which
they compute, with what each takes and gives. The code of the base model runs on every stage:
modules of other stages are replaced by ones without weights, of which the last before a stage's own
layers gives the hidden states that were received.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Final

from torch import Tensor, nn

from vllm.distributed.stages import Stage

# What layers may be given: each stage computes it from positions, or it says nothing.
_MASKS: Final = {"attention_mask"}
_HARMLESS: Final = _MASKS | {
    "cache_position",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "past_key_values",
    "position_embeddings",
    "position_ids",
    "use_cache",
}


class Uncuttable(Exception):
    """A model whose stages need more of each other than hidden states; says what."""


class CutModel:
    """The modules that a stage keeps, and where hidden states enter and leave it."""

    def __init__(self, shell: nn.Module, base: nn.Module, hf: Any, stage: Stage) -> None:
        """Removes modules of other stages from `shell`, and from `base` within it.

        Raises Uncuttable.
        """
        before, layers, after = _read(hf.base_model_pp_plan or {}, base, hf.num_hidden_layers)
        self._received, self._left = _Passage(), _Passage()
        # A tied head multiplies with the embedding's weight, wherever that is loaded once more.
        heads = [child for child in shell.children() if child is not base]
        tied = {id(p) for head in heads for p in head.parameters()} if stage.is_last else set()
        for name in () if stage.is_first else before:
            if not any(id(p) in tied for p in base.get_submodule(name).parameters()):
                base.set_submodule(name, _HandOn())
        stack = base.get_submodule(layers)
        assert isinstance(stack, nn.ModuleList), layers
        for i in range(len(stack)):
            if i not in stage.layers:
                stack[i] = _HandOn() if i != stage.first - 1 else _Received(self._received)
        self._own = [stack[i] for i in stage.layers]
        if stage.is_last:
            return
        self._own[-1].register_forward_hook(self._left.keep)
        for name in after:
            base.set_submodule(name, _HandOn())
        for name, child in list(shell.named_children()):
            if child is not base:
                shell.set_submodule(name, _HandOn())

    def enter(self, hidden: Tensor) -> None:
        """The next call of the base model goes on from `hidden` [1, T, H]."""
        self._received.put(hidden)

    def left(self) -> Tensor:
        """What the stage's last layer gave in the last call, [1, T, H]; not of the last stage."""
        return self._left.take()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Raises Uncuttable in calls of the base model whose layers exchange more."""
        with ExitStack() as hooks:
            for layer in self._own:
                hook = layer.register_forward_hook(_refuse_more, with_kwargs=True)
                hooks.callback(hook.remove)
            yield


class _HandOn(nn.Module):
    """In place of a module of another stage: gives what it is given."""

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        return hidden_states


class _Passage:
    """Where a tensor waits during a call.

    It is no module, and keeps nothing from call to call: captured graphs take tensors that modules
    have for constants.
    """

    def __init__(self) -> None:
        self._waiting: list[Tensor] = []

    def put(self, hidden: Tensor) -> None:
        self._waiting = [hidden]

    def keep(self, layer: nn.Module, inputs: Any, output: Tensor) -> None:
        """A forward hook: puts what the layer gives."""
        self.put(output)

    def take(self) -> Tensor:
        return self._waiting.pop()


class _Received(nn.Module):
    """In place of the layer before a stage's first one: gives what that layer gave."""

    def __init__(self, passage: _Passage) -> None:
        super().__init__()
        self._passage = passage

    def forward(self, *_: Any, **__: Any) -> Tensor:
        return self._passage.take()


def _read(
    plan: dict[str, Sequence[list[str]]], base: nn.Module, num_layers: int
) -> tuple[list[str], str, list[str]]:
    """Names of the modules before the layers, of the layers, and of the modules after them."""
    if not plan:
        raise Uncuttable("no plan")
    modules = dict(base.named_modules())
    if unknown := [name for name in plan if name not in modules]:
        raise Uncuttable(f"no module {', '.join(unknown)}")
    stacks = [name for name in plan if isinstance(modules[name], nn.ModuleList)]
    if len(stacks) != 1 or len(modules[stacks[0]]) != num_layers:
        raise Uncuttable(f"no stack of {num_layers} layers")
    takes, gives = plan[stacks[0]]
    if set(takes) - _MASKS != {"hidden_states"} or list(gives) != ["hidden_states"]:
        raise Uncuttable(f"layers that take {', '.join(takes)} and give {', '.join(gives)}")
    names = list(plan)
    place = names.index(stacks[0])
    return names[:place], stacks[0], names[place + 1 :]


def _refuse_more(layer: nn.Module, inputs: Any, options: dict[str, Any], output: Any) -> None:
    more = [
        name
        for name, value in options.items()
        if name not in _HARMLESS and not isinstance(value, bool | int | float | str | None)
    ]
    if more or any(value is not None for value in inputs[1:]):
        raise Uncuttable(f"layers that take {', '.join(sorted(more)) or 'unnamed values'}")
    if not isinstance(output, Tensor) or output.shape != inputs[0].shape:
        raise Uncuttable("layers that give other things than hidden states")
