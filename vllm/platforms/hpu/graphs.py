"""How the model is called on HPU, in each of the four modes of execution."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn

from vllm.device.attention import AttentionMetas
from vllm.device.graphs import Forward, GraphRunner
from vllm.device.launch import Phase, ShapeKey
from vllm.logger import init_logger
from vllm.platforms.hpu import bridge
from vllm.platforms.hpu.settings import CompileSettings, HpuSettings

if TYPE_CHECKING:
    from vllm.device.launch import ForwardInputs

logger = init_logger(__name__)

# Of one function. Each shape may need one, and with hundreds of shapes torch would give up early.
_MOST_TRACES: Final = 16384
_PHASES: Final = {Phase.PREFILL: "prompt", Phase.DECODE: "decode"}


def named(key: ShapeKey) -> str:
    """A configuration as logs name it: (phase, rows, tokens per row, blocks)."""
    return f"({_PHASES[key.phase]}, {key.rows}, {key.query_len}, {key.kv_blocks})"


class HpuRunner(GraphRunner):
    """Calls the model as it is, and tells when that means compiling within a request."""

    def __init__(self) -> None:
        self.prepared: set[ShapeKey] = set()  # compiled for; with or without a graph
        self._is_sealed = False

    def seal(self, is_warm: bool = True) -> None:
        """Requests come: from now on, keys that were not prepared are worth a warning."""
        self._is_sealed = True

    def forget(self, key: ShapeKey) -> None:
        """Its preparation failed: the next launch of it is unforeseen."""
        self.prepared.discard(key)

    def capture(
        self, key: ShapeKey, forward: Forward, inputs: ForwardInputs, metas: AttentionMetas
    ) -> None:
        """Nothing to capture; what has run once is compiled."""

    def run(
        self, key: ShapeKey, forward: Forward, inputs: ForwardInputs, metas: AttentionMetas
    ) -> Tensor:
        self.notice(key)
        hidden: Tensor = forward(inputs, metas)
        return hidden

    def notice(self, key: ShapeKey) -> None:
        """Before a launch: one that warm-up makes is prepared, another one unforeseen."""
        if key in self.prepared:
            return
        self.prepared.add(key)
        if self._is_sealed:
            logger.warning("Configuration: %s was not warmed-up!", named(key))


class LazyRunner(HpuRunner):
    """Lazy mode: ends the graph of the compiler after every few layers, which then share one."""

    def __init__(self, layers_per_step: int) -> None:
        super().__init__()
        self._layers_per_step = layers_per_step
        self._divided: Forward | None = None

    def divide(self, forward: Forward) -> None:
        if forward is self._divided:
            return
        self._divided = forward
        mark_step = bridge.module("core").mark_step

        def end_graph(module: nn.Module, args: Any, output: Any) -> None:
            mark_step()

        for layers in _stacks(forward):
            for i, layer in enumerate(layers.children(), start=1):
                if self._layers_per_step and i % self._layers_per_step == 0:
                    layer.register_forward_hook(end_graph)

    def run(
        self, key: ShapeKey, forward: Forward, inputs: ForwardInputs, metas: AttentionMetas
    ) -> Tensor:
        self.divide(forward)
        return super().run(key, forward, inputs, metas)


class HpuGraphRunner(LazyRunner):
    """Lazy mode with HPU graphs: keys that warm-up captured are replayed, others run as they are.

    A replay overwrites the hidden states of the last one of its key: the end of a launch is queued
    before the next launch.
    """

    def __init__(self, layers_per_step: int, keeps_inputs: bool) -> None:
        super().__init__(layers_per_step)
        self._keeps_inputs = keeps_inputs
        self.captured: set[ShapeKey] = set()
        self._graphed: Any = None

    def capture(
        self, key: ShapeKey, forward: Forward, inputs: ForwardInputs, metas: AttentionMetas
    ) -> None:
        self.divide(forward)
        self._graph_of(forward)(inputs, metas)
        self.captured.add(key)

    def run(
        self, key: ShapeKey, forward: Forward, inputs: ForwardInputs, metas: AttentionMetas
    ) -> Tensor:
        if key not in self.captured:
            return super().run(key, forward, inputs, metas)
        hidden: Tensor = self._graph_of(forward)(inputs, metas)
        return hidden

    def _graph_of(self, forward: Forward) -> Any:
        if self._graphed is None:
            wrap = bridge.module("hpu").wrap_in_hpu_graph
            # Wrapping changes a module, and `forward` itself must still run as it is.
            again = Forward(forward.model, forward.backends)
            self._graphed = wrap(again, disable_tensor_cache=not self._keeps_inputs)
        return self._graphed

    def close(self) -> None:
        if self._graphed is not None:
            self._graphed.clear_cache()
            self.captured.clear()


class CompiledRunner(HpuRunner):
    """torch.compile through the plugin's backend: the layers one by one, or the model at once."""

    def __init__(self, settings: CompileSettings) -> None:
        super().__init__()
        self._settings = settings
        self._compiled: Forward | None = None
        self._call: Any = None

    def seal(self, is_warm: bool = True) -> None:
        super().seal(is_warm)
        if is_warm and self._settings.skip_guards:
            torch.compiler.set_stance(skip_guard_eval_unsafe=True)

    def run(
        self, key: ShapeKey, forward: Forward, inputs: ForwardInputs, metas: AttentionMetas
    ) -> Tensor:
        self.notice(key)
        if forward is not self._compiled:
            self._compile(forward)
        hidden: Tensor = self._call(inputs, metas)
        return hidden

    def _compile(self, forward: Forward) -> None:
        settings = self._settings
        limit = _MOST_TRACES
        config = torch._dynamo.config
        config.recompile_limit = max(config.recompile_limit, limit)
        config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, 8 * limit)
        config.force_parameter_static_shapes = False
        options: dict[str, Any] = {"backend": "hpu_backend", "fullgraph": settings.fullgraph}
        # From the first trace on: one for the first shape alone would still match that shape when a
        # trace for all does, and which of the two a launch takes would change with time.
        options["dynamic"] = settings.dynamic_shapes
        if settings.dynamic_shapes:
            options["options"] = {"force_static_compile": True}
        self._compiled, self._call = forward, forward
        if not settings.regional:
            self._call = torch.compile(forward, **options)
            return
        for layers in _stacks(forward):
            for layer in layers.children():
                layer.compile(**options)


def _stacks(forward: Forward) -> list[nn.Module]:
    """The lists of layers of the model, or layers by number; not those within layers."""
    found: list[nn.Module] = []
    names: list[str] = []
    for name, module in forward.named_modules():
        inner = any(name.startswith(f"{outer}.") for outer in names)
        if isinstance(module, nn.ModuleList | nn.ModuleDict) and not inner:
            found.append(module)
            names.append(name)
    return found


def make_runner(settings: HpuSettings) -> HpuRunner:
    """The way of execution of PT_HPU_LAZY_MODE and --enforce-eager."""
    if settings.captures_graphs:
        return HpuGraphRunner(settings.layers_per_step, settings.graphs.keeps_inputs)
    if settings.is_lazy:
        return LazyRunner(settings.layers_per_step)
    if settings.compiles:
        return CompiledRunner(settings.compile)
    return HpuRunner()
