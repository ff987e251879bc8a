"""What a device supplies to the one engine: memory, transfers, ops, attention, graphs, a policy."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from vllm.platforms.facts import PlatformFacts

if TYPE_CHECKING:
    from vllm.attention.interface import AttentionBackend
    from vllm.config.vllm import VllmConfig
    from vllm.layers.methods import ExpertsMethod, LinearMethod
    from vllm.messages.facts import WorkerFacts
    from vllm.ops.registry import Ops
    from vllm.worker.graphs import GraphRunner
    from vllm.worker.model_runner import ModelRunner
    from vllm.worker.planner import Planner
    from vllm.worker.step_observer import StepObserver


@dataclass(frozen=True, slots=True)
class MemoryInfo:
    total_bytes: int
    free_bytes: int  # what this process may still take, limits of its container considered
    reserved_bytes: int  # what this process holds already


@dataclass(frozen=True, slots=True)
class Capabilities:
    """Facts about a device, asked for instead of its name."""

    dtypes: tuple[torch.dtype, ...]  # preferred first
    default_dtype: torch.dtype  # of a checkpoint that names none it can use
    pinned_memory: bool = False
    static_shapes: bool = False  # launches must be padded to known shapes
    default_block_size: int = 16
    default_depth: int = 1
    default_memory_utilization: float = 0.9


class HostCopy(Protocol):
    """A device-to-host copy under way."""

    def wait(self) -> np.ndarray: ...


class Device(ABC):
    """One device of a platform: memory and transfers, nothing else."""

    torch_device: torch.device

    @abstractmethod
    def memory(self) -> MemoryInfo: ...

    def zeros(self, num_bytes: int, dtype: torch.dtype) -> Tensor:
        """Zeroed memory, in one dimension."""
        return torch.zeros(num_bytes // dtype.itemsize, dtype=dtype, device=self.torch_device)

    def needing(self, what: str) -> AbstractContextManager[None]:
        """Raises ConfigError where the body runs out of memory, if the device can tell that."""
        return nullcontext()

    @abstractmethod
    def upload(self, array: np.ndarray) -> Tensor:
        """Copy to the device, asynchronously where possible; `array` is not written afterwards."""

    def put(self, out: Tensor, index: np.ndarray, rows: np.ndarray) -> None:
        """out[index] = rows, along dimension 0. Where an index repeats, so does its row."""
        out.index_copy_(0, self.upload(index.astype(np.int64)), self.upload(rows))

    @abstractmethod
    def download(self, tensor: Tensor) -> HostCopy:
        """Start copying to the host; `.wait()` gives the array."""

    def step_boundary(self) -> None:
        """End of a unit of device work, for devices that accumulate one."""

    @abstractmethod
    def synchronize(self) -> None: ...

    @abstractmethod
    def peak_bytes(self, run: Callable[[], object]) -> int:
        """Most memory that `run` takes at any time, beyond what is taken before."""


class Platform(PlatformFacts):
    """Everything shared code may ask of a kind of device."""

    @abstractmethod
    def resolve(self, config: VllmConfig) -> VllmConfig:
        """`config` with this platform's choices in place of what is still automatic."""

    @abstractmethod
    def prepare_process(self, config: VllmConfig, rank: int) -> None:
        """Threads, affinity, allocator: called once in each worker before tensors are made."""

    @abstractmethod
    def planner(self, config: VllmConfig, num_blocks: int) -> Planner:
        """How steps are cut into launches, over a cache of `num_blocks` blocks."""

    @abstractmethod
    def graph_runner(self, config: VllmConfig) -> GraphRunner: ...

    @abstractmethod
    def warm_up(self, config: VllmConfig, runner: ModelRunner) -> None:
        """Have the runner rehearse whatever must not happen first in a request."""

    @abstractmethod
    def kv_cache_budget(self, config: VllmConfig, facts: WorkerFacts) -> int:
        """Bytes of a rank's memory that --gpu-memory-utilization leaves for its KV cache."""

    @abstractmethod
    def attention_backends(self) -> Sequence[type[AttentionBackend]]:
        """In order of preference."""

    @abstractmethod
    def ops(self) -> Mapping[str, Callable[..., Any]]:
        """Overrides of reference ops (see vllm.ops.registry)."""

    def linear_method(self) -> LinearMethod:
        """How weights that are not quantized are stored and multiplied."""
        from vllm.layers.methods import Unquantized

        return Unquantized()

    def experts_method(self, ops: Ops) -> ExpertsMethod:
        """The same for the experts of a mixture."""
        from vllm.layers.methods import ExpertsMethod

        return ExpertsMethod(ops)

    def profiler_activities(self) -> Sequence[torch.profiler.ProfilerActivity]:
        """What the torch profiler is to record, of the host and of the device."""
        return (torch.profiler.ProfilerActivity.CPU,)

    def observers(self, config: VllmConfig, device: Device, rank: int) -> Sequence[StepObserver]:
        """Who watches the steps of a rank, besides those that watch on any platform."""
        return ()
