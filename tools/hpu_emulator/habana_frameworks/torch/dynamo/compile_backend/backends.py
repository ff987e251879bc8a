"""Compiled regions: what Dynamo traced is one recipe per graph and concrete shapes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from habana_frameworks.torch.dynamo.compile_backend.config import Options, options_of
from hpu_emulator import _C, fallbacks
from hpu_emulator.regions import compiled_region
from hpu_emulator.runtime import SETTINGS
from torch import Tensor, fx


def hpu_backend(
    graph_module: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    options: dict[str, object] | None = None,
    mode: str | None = None,
) -> Callable[..., Any]:
    """What torch.compile(backend="hpu_backend") calls for each graph that it traced."""
    if SETTINGS.is_lazy:
        raise RuntimeError("hpu_backend needs PT_HPU_LAZY_MODE=0")
    if mode not in (None, "default"):
        raise ValueError(f"hpu_backend has no mode {mode!r}")
    chosen = options_of(options)
    if not chosen.use_compiled_recipes:
        return graph_module.forward
    return CompiledGraph(graph_module, chosen)


class CompiledGraph:
    """Runs the ops of a traced graph as one recipe. Inputs that it changes are changed in place."""

    def __init__(self, graph_module: fx.GraphModule, options: Options) -> None:
        self._forward = graph_module.forward
        self._options = options
        symbols: dict[str, str] = {}
        # Symbolic sizes stay in a recipe only where it may be dynamic.
        self._dynamic = (
            []
            if options.force_static_compile
            else [_symbolic(node, symbols) for node in _placeholders(graph_module)]
        )
        digest = hashlib.sha256(graph_text(graph_module).encode()).hexdigest()
        self._graph_key = f"{_summary(graph_module)} {digest[:32]}"
        self._keys: dict[tuple[object, ...], str] = {}

    def __call__(self, *inputs: Any) -> Any:
        ops, fallen = _C.counts()[2:4]
        _C.begin_region()
        try:
            with compiled_region():
                outputs = self._forward(*inputs)
            if not self._options.use_eager_fallback and _C.counts()[3] > fallen:
                raise RuntimeError(
                    "hpu_backend: an op of the graph runs on the CPU, and use_eager_fallback is "
                    f"off (PT_HPU_USE_EAGER_FALLBACK): {dict(fallbacks.counts())}"
                )
        except BaseException:
            _C.abandon_region()
            raise
        _C.end_region(self._key(inputs), _C.counts()[2] - ops)
        return outputs

    def _key(self, inputs: Sequence[Any]) -> str:
        shapes = tuple(
            (self._dynamic[i] or _concrete(value)) if self._dynamic else _concrete(value)
            for i, value in enumerate(inputs)
        )
        known = self._keys.get(shapes)
        if known is None:
            known = f"{self._graph_key} {shapes}"
            self._keys[shapes] = known
        return known


def _summary(graph_module: fx.GraphModule, num_ops: int = 4) -> str:
    calls = [node.name for node in graph_module.graph.nodes if node.op.startswith("call_")]
    more = f" and {len(calls) - num_ops} more" if len(calls) > num_ops else ""
    return " ".join(calls[:num_ops]) + more


def _placeholders(graph_module: fx.GraphModule) -> list[fx.Node]:
    return [node for node in graph_module.graph.nodes if node.op == "placeholder"]


def _concrete(value: object) -> object:
    if isinstance(value, Tensor):
        place = (value.device.type, value.dtype, tuple(value.shape), value.stride())
        return (*place, value.storage_offset())
    return value


def _symbolic(node: fx.Node, symbols: dict[str, str]) -> tuple[object, ...] | None:
    """Of an input whose sizes are symbols, named in the order of their appearance."""
    value = node.meta.get("example_value")

    def name(size: object) -> object:
        if isinstance(size, torch.SymInt):
            return symbols.setdefault(str(size), f"s{len(symbols)}")
        return size

    if isinstance(value, torch.SymInt):
        return (name(value),)
    if isinstance(value, Tensor):
        sizes = [*value.shape, *value.stride()]
        if any(isinstance(size, torch.SymInt) for size in sizes):
            return (value.device.type, value.dtype, *map(name, sizes))
    return None


def graph_text(graph_module: fx.GraphModule) -> str:
    """Equal for graphs of equal ops, whatever their values are called."""
    names: dict[fx.Node, str] = {}
    lines = []
    for node in graph_module.graph.nodes:
        names[node] = f"%{len(names)}"
        arguments = fx.map_arg((node.args, node.kwargs), lambda n: _Name(names[n]))
        target = node.target
        if node.op == "placeholder":
            target = ""
        elif node.op in ("get_attr", "call_module"):
            target = _attribute_text(graph_module, str(target))
        elif not isinstance(target, str):
            target = f"{target.__module__}.{getattr(target, '__qualname__', target)}"
        lines.append(f"{names[node]} {node.op} {target} {arguments}")
    return "\n".join(lines)


class _Name(str):
    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _attribute_text(graph_module: fx.GraphModule, path: str) -> str:
    value: Any = graph_module
    for part in path.split("."):
        value = getattr(value, part)
    if isinstance(value, fx.GraphModule):
        return f"({graph_text(value)})"
    return str(_concrete(value)) if isinstance(value, Tensor) else repr(value)
