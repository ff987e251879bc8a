"""CPU graphs: the ops of a decode step, captured once for a number of rows, replayed by C++.

A layer is a dozen ops of a few microseconds each; calling them from Python takes longer than some
of them. A replay makes the same calls, so every bit is the same.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from vllm.device.attention import NoAttention
from vllm.device.graphs import EagerRunner, Forward
from vllm.device.launch import Phase, ShapeKey
from vllm.logger import init_logger
from vllm.platforms.cpu.attention import NativeAttention

if TYPE_CHECKING:
    from vllm.device.attention import AttentionMetas
    from vllm.device.launch import ForwardInputs

logger = init_logger(__name__)

# Beyond, the kernels take so much longer than their calls that a graph would not be noticed.
MOST_ROWS: Final = 256
_READERS: Final = frozenset({Tensor.tolist, Tensor.numpy, Tensor.__array__})
MOST_GRAPHS: Final = 64  # the least recently used one goes first


class CpuGraphRunner(EagerRunner):
    """Replays decode steps; captures one when its number of rows comes for the second time."""

    def __init__(self) -> None:
        self._graphs: OrderedDict[int, Any] = OrderedDict()  # torch.classes.vllm.Graph, by rows
        self._met: set[int] = set()
        self._refusal = ""

    def run(
        self, key: ShapeKey, forward: Forward, inputs: ForwardInputs, metas: AttentionMetas
    ) -> Tensor:
        if key.phase is not Phase.DECODE or key.rows > MOST_ROWS or self._refusal:
            return super().run(key, forward, inputs, metas)
        graph = self._graphs.get(key.rows)
        if graph is not None:
            self._graphs.move_to_end(key.rows)
            hidden: Tensor = graph.replay(_tensors(inputs, metas))
            return hidden
        if key.rows not in self._met:
            self._met.add(key.rows)
            return super().run(key, forward, inputs, metas)
        return self._capture(key, forward, inputs, metas)

    def _capture(
        self, key: ShapeKey, forward: Forward, inputs: ForwardInputs, metas: AttentionMetas
    ) -> Tensor:
        kinds = (NativeAttention, NoAttention)
        if not all(isinstance(backend, kinds) for backend in forward.backends):
            self._refusal = "its attention is not the native one"  # and takes lengths as numbers
            return super().run(key, forward, inputs, metas)
        tensors = _tensors(inputs, metas)
        # Kept while it captures: one that the forward pass drops would leave its address to others.
        constants = list(_constants(forward))
        graph = torch.classes.vllm.Graph(tensors, constants)
        reading = _Reading()
        try:
            with reading:
                hidden = super().run(key, forward, inputs, metas)
        except BaseException:
            graph.end(tensors[0])
            raise
        self._refusal = graph.end(hidden) or reading.found
        if self._refusal:
            logger.debug("no CPU graphs: %s", self._refusal)
            return hidden
        if len(self._graphs) == MOST_GRAPHS:
            self._graphs.popitem(last=False)
        self._graphs[key.rows] = graph
        return hidden

    def close(self) -> None:
        self._graphs.clear()
        self._met.clear()


class _Reading(TorchFunctionMode):
    """Notices values that Python reads without an op: what it does with them is not replayed."""

    def __init__(self) -> None:
        super().__init__()
        self.found = ""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function in _READERS:
            self.found = f"{function.__name__}() reads values of a tensor"
        return function(*args, **(kwargs or {}))


def _tensors(inputs: ForwardInputs, metas: AttentionMetas) -> list[Tensor]:
    """What differs from step to step."""
    return [*inputs, *(part for meta in metas for part in meta if isinstance(part, Tensor))]


def _constants(forward: Forward) -> Iterator[Tensor]:
    """Tensors that belong to the model: parameters, buffers, caches and what layers derived."""
    yield from forward.parameters()
    yield from forward.buffers()
    for module in forward.modules():
        yield from (value for value in vars(module).values() if isinstance(value, Tensor))
