"""What can be tuned on HPU: environment and model facts, resolved once per process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vllm.envs import Environment
from vllm.platforms.hpu import bridge

if TYPE_CHECKING:
    from vllm.config.vllm import VllmConfig


@dataclass(frozen=True, slots=True)
class CompileSettings:
    """torch.compile with the plugin's backend."""

    regional: bool  # layer by layer
    dynamic_shapes: bool  # one trace for all shapes
    fullgraph: bool
    skip_guards: bool  # after warm-up


@dataclass(frozen=True, slots=True)
class GraphSettings:
    """Capture of HPU graphs, in lazy mode."""

    reserved: float  # share of the usable memory
    prompt_ratio: float  # share of that
    prompt_strategy: str
    decode_strategy: str
    keeps_inputs: bool  # and copies those of a replay into them, instead of rebinding

    def reserved_of_free(self, utilization: float) -> float:
        """The share as one of what is free once the cache is allocated: margin and graphs."""
        graphs = utilization * self.reserved
        rest = 1 - utilization + graphs
        return graphs / rest if rest else 0.0


@dataclass(frozen=True, slots=True)
class CollectiveSettings:
    """What several ranks compute together."""

    timeout_s: int  # 0: the library's
    host_timeout_s: int  # likewise, of what ranks exchange on the host
    row_chunks: int  # pieces of a row-parallel product; 1: it is summed as a whole
    row_chunk_threshold: int  # tokens from which it is cut


@dataclass(frozen=True, slots=True)
class HpuSettings:
    is_lazy: bool
    enforce_eager: bool  # no graphs are captured, nothing is compiled ahead
    skip_warmup: bool
    layers_per_step: int  # 0: all
    compile: CompileSettings
    graphs: GraphSettings

    @property
    def captures_graphs(self) -> bool:
        return self.is_lazy and not self.enforce_eager

    @property
    def compiles(self) -> bool:
        return not self.is_lazy and not self.enforce_eager


def settings_of(config: VllmConfig, env: Environment | None = None) -> HpuSettings:
    env = env or Environment()
    return HpuSettings(
        is_lazy=bridge.is_lazy(),
        enforce_eager=config.device.enforce_eager,
        skip_warmup=env.VLLM_SKIP_WARMUP,
        layers_per_step=env.VLLM_CONFIG_HIDDEN_LAYERS,
        compile=CompileSettings(
            regional=env.VLLM_T_COMPILE_REGIONAL_COMPILATION,
            dynamic_shapes=env.VLLM_T_COMPILE_DYNAMIC_SHAPES,
            fullgraph=env.VLLM_T_COMPILE_FULLGRAPH,
            skip_guards=env.VLLM_FULL_WARMUP,
        ),
        graphs=GraphSettings(
            reserved=env.VLLM_GRAPH_RESERVED_MEM,
            prompt_ratio=env.VLLM_GRAPH_PROMPT_RATIO,
            prompt_strategy=env.VLLM_GRAPH_PROMPT_STRATEGY,
            decode_strategy=env.VLLM_GRAPH_DECODE_STRATEGY,
            keeps_inputs=config.parallel.pipeline_parallel_size > 1,
        ),
    )


def collective_settings(config: VllmConfig, env: Environment | None = None) -> CollectiveSettings:
    env, parallel = env or Environment(), config.parallel
    timeout_s = parallel.distributed_timeout_seconds
    return CollectiveSettings(
        timeout_s=timeout_s,
        host_timeout_s=parallel.cpu_distributed_timeout_seconds or timeout_s,
        row_chunks=env.VLLM_ROW_PARALLEL_CHUNKS,
        row_chunk_threshold=env.VLLM_ROW_PARALLEL_CHUNK_THRESHOLD,
    )
