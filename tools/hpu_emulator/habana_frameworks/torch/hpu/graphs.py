"""HPU graphs: device ops captured once per input key, then replayed without the program."""

from __future__ import annotations

import copy
import gc
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from habana_frameworks.torch.core.step import mark_step
from habana_frameworks.torch.hpu.device import synchronize
from habana_frameworks.torch.hpu.streams import Stream, stream
from hpu_emulator import _C
from hpu_emulator.errors import DtypeFlipError
from hpu_emulator.strict import is_strict
from torch import Tensor

logger = logging.getLogger(__name__)


class HPUGraph:
    """One captured graph. Its results are static: each replay overwrites them."""

    def __init__(self) -> None:
        self._recorder = _C.Recorder()
        self._inputs: list[Tensor] = []
        self._outputs: list[Tensor] = []
        # Without the tensor cache a graph keeps no more than lives at once.
        self._keeps_intermediates = True

    def capture_begin(self, dry_run: bool = False) -> None:
        """Ops until capture_end() belong to the graph; with `dry_run` they compute nothing."""
        self._inputs, self._outputs = [], []
        self._recorder.begin(dry_run)

    def capture_end(self) -> None:
        """Raises RuntimeError when the device has no memory for the graph."""
        self._recorder.end(self._keeps_intermediates)
        self._recorder.set_inputs(self._inputs)
        self._inputs = []

    def replay(self, asynchronous: bool = False) -> None:
        self._recorder.replay()

    def replayV2(
        self, static: Sequence[Tensor], tensor_list: Sequence[Tensor], asynchronous: bool = False
    ) -> None:
        """Copies `tensor_list` into the captured inputs `static` first."""
        _copy_into(static, tensor_list)
        self._recorder.replay()

    def replayV3(self, inputs: Sequence[Tensor], asynchronous: bool = False) -> None:
        """Works on the memory of `inputs`, which are as many as were marked."""
        self._recorder.bind(list(inputs))
        self._recorder.replay()

    def mark_user_inputs(self, inputs: Sequence[Tensor]) -> None:
        self._inputs = list(inputs)
        if self._recorder.is_captured:
            self._recorder.set_inputs(self._inputs)
            self._inputs = []

    def mark_user_outputs(self, outputs: Sequence[Tensor]) -> None:
        """Keeps them as long as the graph."""
        self._outputs = list(outputs)

    def get_user_input_match_indices(self) -> list[int]:
        """Of the marked inputs that ops of the graph use."""
        return list(self._recorder.used_inputs())

    def clear_inputs(self) -> None:
        """Lets go of the inputs: only replayV3() is possible from here on."""
        self._recorder.drop_inputs()

    def reset(self) -> None:
        self._outputs = []
        self._recorder.reset()


class graph:
    """Context in which a graph is captured."""

    def __init__(
        self, hpu_graph: HPUGraph, stream: Stream | None = None, dry_run: bool = False
    ) -> None:
        self._graph = hpu_graph
        self._stream = stream
        self._dry_run = dry_run
        self._on_stream: Any = nullcontext()

    def __enter__(self) -> None:
        synchronize()
        gc.collect()
        self._on_stream = nullcontext() if self._stream is None else stream(self._stream)
        self._on_stream.__enter__()
        try:
            self._graph.capture_begin(self._dry_run)
        except BaseException:
            self._on_stream.__exit__(None, None, None)
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._graph.capture_end()
            else:
                self._graph._recorder.abort()
        finally:
            self._on_stream.__exit__(kind, error, trace)


def input_hash(obj: object) -> int:
    """Key of the graph for these inputs. Values count by hash(), tensors not by dtype or values."""
    if isinstance(obj, Mapping):
        return input_hash(tuple(obj.items()))
    if isinstance(obj, list | tuple):
        return hash(tuple(input_hash(item) for item in obj))
    if isinstance(obj, Tensor):
        geometry = (tuple(obj.shape), obj.stride(), obj.storage_offset())
        return hash((geometry, torch.is_autocast_enabled("hpu")))
    return hash(obj)


def tensors_in(obj: object) -> Iterator[Tensor]:
    """Those that a key sees."""
    if isinstance(obj, Tensor):
        yield obj
    elif isinstance(obj, Mapping):
        for item in obj.values():
            yield from tensors_in(item)
    elif isinstance(obj, list | tuple):
        for item in obj:
            yield from tensors_in(item)


def _map_tensors(obj: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(obj, Tensor):
        return change(obj)
    if isinstance(obj, Mapping):
        changed = {name: _map_tensors(item, change) for name, item in obj.items()}
        return changed if type(obj) is dict else type(obj)(**changed)
    if isinstance(obj, list | tuple):
        items = [_map_tensors(item, change) for item in obj]
        is_named = isinstance(obj, tuple) and type(obj) is not tuple
        return type(obj)(*items) if is_named else type(obj)(items)
    return obj


def _copy_into(static: Sequence[Tensor], inputs: Sequence[Tensor]) -> None:
    if len(static) != len(inputs):
        raise ValueError(f"{len(inputs)} inputs for a graph with {len(static)}")
    for kept, given in zip(static, inputs, strict=True):
        is_same = kept is given or (
            kept.device == given.device
            and _C.data_ptr(kept) == _C.data_ptr(given)
            and kept.stride() == given.stride()
        )
        if not is_same:
            kept.copy_(given, non_blocking=True)


def _check_dtypes(captured: Sequence[torch.dtype], inputs: Sequence[Tensor]) -> None:
    """The key knows no dtypes, so a replay takes whatever comes."""
    if not is_strict("dtype"):
        return
    for i, (dtype, tensor) in enumerate(zip(captured, inputs, strict=True)):
        if tensor.dtype != dtype:
            raise DtypeFlipError(
                f"input {i} of shape {list(tensor.shape)} is {tensor.dtype}; the graph of its key "
                f"was captured with {dtype} and would take its bytes, or its values, for that"
            )


@dataclass(slots=True)
class _Captured:
    graph: HPUGraph
    inputs: list[Tensor] | None  # static, copied into; None: rebound
    dtypes: list[torch.dtype]
    outputs: Any
    from_inputs: dict[int, int]  # id of an output that lies in an input: index of that
    kept: object
    uses: int = 0


@dataclass(frozen=True, slots=True)
class GraphOptions:
    asynchronous: bool = False
    disable_tensor_cache: bool = False
    dry_run: bool = False
    max_graphs: int | None = None
    evicts: bool = False  # the least used graph, to stay within max_graphs

    def __post_init__(self) -> None:
        if self.max_graphs is not None and self.max_graphs < 0:
            raise ValueError(f"max_graphs={self.max_graphs}: not a number of graphs")


class GraphedFunction:
    """A function whose device ops are replayed where its inputs have been seen before."""

    def __init__(self, function: Callable[..., Any], options: GraphOptions) -> None:
        self._function = function
        self._options = options
        self._rebinds = _overridden_tensor_cache(options.disable_tensor_cache)
        self._graphs: dict[int, _Captured] = {}

    def __call__(
        self,
        *args: Any,
        bypass_hpu_graphs: bool = False,
        warmup_mode: bool = False,
        cache_tensors_list: object = None,
        **kwargs: Any,
    ) -> Any:
        if bypass_hpu_graphs:
            return self._function(*args, **kwargs)
        key = input_hash((args, kwargs))
        captured = self._graphs.get(key)
        if captured is None:
            if not self._has_room():
                return self._function(*args, **kwargs)
            return self._capture(key, cache_tensors_list, args, kwargs)
        captured.uses += 1
        if warmup_mode:
            mark_step()
            return captured.outputs
        return self._replay(captured, list(tensors_in((args, kwargs))))

    def clear_cache(self) -> None:
        for captured in self._graphs.values():
            captured.graph.reset()
        self._graphs.clear()

    def clear_inputs(self) -> None:
        for captured in self._graphs.values():
            captured.graph.clear_inputs()

    def __len__(self) -> int:
        return len(self._graphs)

    def _has_room(self) -> bool:
        limit = self._options.max_graphs
        if limit is None or len(self._graphs) < limit:
            return True
        if self._options.evicts and self._graphs:
            least = min(self._graphs, key=lambda key: self._graphs[key].uses)
            self._graphs.pop(least).graph.reset()
            return True
        return False

    def _capture(
        self, key: int, kept: object, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        inputs = list(tensors_in((args, kwargs)))
        is_dry = self._options.dry_run or self._rebinds
        hpu_graph = HPUGraph()
        hpu_graph._keeps_intermediates = not self._rebinds
        with graph(hpu_graph, dry_run=is_dry):
            outputs = self._function(*args, **kwargs)
            hpu_graph.mark_user_inputs(inputs)
            hpu_graph.mark_user_outputs(list(tensors_in(outputs)))
        by_storage = {tensor.untyped_storage()._cdata: i for i, tensor in enumerate(inputs)}
        captured = _Captured(
            hpu_graph,
            None if self._rebinds else inputs,
            [tensor.dtype for tensor in inputs],
            outputs,
            {
                id(tensor): by_storage[tensor.untyped_storage()._cdata]
                for tensor in tensors_in(outputs)
                if tensor.untyped_storage()._cdata in by_storage
            },
            kept,
        )
        self._graphs[key] = captured
        if is_dry:
            hpu_graph.replay(self._options.asynchronous)
        if self._rebinds:
            hpu_graph.clear_inputs()
        return outputs

    def _replay(self, captured: _Captured, inputs: list[Tensor]) -> Any:
        _check_dtypes(captured.dtypes, inputs)
        if captured.inputs is not None:
            captured.graph.replayV2(captured.inputs, inputs, self._options.asynchronous)
            return captured.outputs
        captured.graph.replayV3(inputs, self._options.asynchronous)
        captured.graph.clear_inputs()
        if not captured.from_inputs:
            return captured.outputs

        def rebound(tensor: Tensor) -> Tensor:
            index = captured.from_inputs.get(id(tensor))
            if index is None:
                return tensor
            geometry = (tensor.shape, tensor.stride(), tensor.storage_offset())
            return inputs[index].as_strided(*geometry)

        return _map_tensors(captured.outputs, rebound)


def _overridden_tensor_cache(disable: bool) -> bool:
    """PT_HPUGRAPH_DISABLE_TENSOR_CACHE overrides the argument; it is no ordinary flag: the one
    word that disables the cache is "1", and "true" leaves the argument as it is."""
    text = os.environ.get("PT_HPUGRAPH_DISABLE_TENSOR_CACHE", "")
    return {"1": True, "0": False, "false": False}.get(text, disable)


def wrap_in_hpu_graph(
    module: torch.nn.Module,
    asynchronous: bool = False,
    disable_tensor_cache: bool = False,
    dry_run: bool = False,
    max_graphs: int | None = None,
) -> torch.nn.Module:
    """Replaces `module.forward`, and returns the module; see GraphedFunction."""
    options = GraphOptions(asynchronous, disable_tensor_cache, dry_run, max_graphs)
    return _wrap(module, options)


def _wrap(module: torch.nn.Module, options: GraphOptions) -> torch.nn.Module:
    forward = GraphedFunction(module.forward, options)
    module.__dict__["forward"] = forward
    module.__dict__["clear_cache"] = forward.clear_cache
    module.__dict__["clear_inputs"] = forward.clear_inputs
    return module


def wrap_in_hpu_graph_func(
    func: Callable[..., Any],
    asynchronous: bool = False,
    disable_tensor_cache: bool = False,
    dry_run: bool = False,
    max_graphs: int | None = None,
) -> GraphedFunction:
    options = GraphOptions(asynchronous, disable_tensor_cache, dry_run, max_graphs)
    return GraphedFunction(func, options)


def _refuse_training(module: object) -> None:
    is_training = torch.is_grad_enabled() and isinstance(module, torch.nn.Module)
    if is_training and any(weight.requires_grad for weight in module.parameters()):  # type: ignore[attr-defined]
        raise NotImplementedError(
            "the emulator captures no backward graphs: call this under torch.no_grad()"
        )


def make_graphed_callables(
    callables: Any,
    sample_args: Any,
    warmups: int = 0,
    allow_unused_input: bool = False,
    asynchronous: bool = False,
    disable_tensor_cache: bool = False,
    dry_run: bool = False,
) -> Any:
    """Captures each callable for its sample arguments; inference only. Other shapes are not
    captured."""
    is_single = not isinstance(callables, tuple)
    pairs = ((callables, sample_args),) if is_single else zip(callables, sample_args, strict=True)
    options = GraphOptions(asynchronous, disable_tensor_cache, dry_run, max_graphs=1)
    wrapped = []
    for function, args in pairs:
        _refuse_training(function)
        for _ in range(warmups):
            function(*args)
        is_module = isinstance(function, torch.nn.Module)
        made = _wrap(function, options) if is_module else GraphedFunction(function, options)
        made(*args)
        wrapped.append(made)
    return wrapped[0] if is_single else tuple(wrapped)


class ModuleCacher:
    """Wraps models whose shapes are many: keeps the graphs of the most used."""

    def __init__(self, max_graphs: int = 10) -> None:
        self._max_graphs = max_graphs

    def __call__(
        self,
        model: torch.nn.Module,
        use_lfu: bool = False,
        inplace: bool = True,
        allow_unused_input: bool = False,
        asynchronous: bool = False,
        have_grad_accumulation: bool = False,
        log_frequency: int = 100,
        verbose: bool = False,
        disable_tensor_cache: bool = False,
        dry_run: bool = False,
    ) -> torch.nn.Module:
        """Without `use_lfu`, shapes beyond the first `max_graphs` are not captured."""
        if have_grad_accumulation:
            raise NotImplementedError("the emulator captures no backward graphs")
        _refuse_training(model)
        chosen = model if inplace else copy.deepcopy(model)
        wrapped = _wrap(
            chosen,
            GraphOptions(asynchronous, disable_tensor_cache, dry_run, self._max_graphs, use_lfu),
        )
        if verbose:
            _log_uses(chosen, max(1, log_frequency))
        return wrapped


def _log_uses(module: torch.nn.Module, frequency: int) -> None:
    forward: GraphedFunction = module.__dict__["forward"]
    calls = 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls % frequency == 0:
            logger.info("%d calls, %d graphs", calls, len(forward))
        return forward(*args, **kwargs)

    module.__dict__["forward"] = counted


__all__ = [
    "HPUGraph",
    "ModuleCacher",
    "graph",
    "input_hash",
    "make_graphed_callables",
    "wrap_in_hpu_graph",
    "wrap_in_hpu_graph_func",
]
