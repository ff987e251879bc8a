"""What programs written for vLLM ask `current_platform`, in vLLM's words."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from vllm.device.capabilities import Capabilities
    from vllm.device.device import Device


class PlatformFacts(ABC):
    """Nothing of ours calls these: the engine asks for capabilities, never for a name."""

    name: str
    capabilities: Capabilities

    @abstractmethod
    def device(self, index: int) -> Device: ...

    @property
    def device_type(self) -> str:
        """As torch names the device."""
        return self.name

    @property
    def device_name(self) -> str:
        return self.name

    @property
    def supported_dtypes(self) -> list[torch.dtype]:
        """Preferred first."""
        return list(self.capabilities.dtypes)

    def is_cpu(self) -> bool:
        return self.name == "cpu"

    def is_hpu(self) -> bool:
        return self.name == "hpu"

    def is_cuda(self) -> bool:
        return False

    def is_rocm(self) -> bool:
        return False

    def is_cuda_alike(self) -> bool:
        return False

    def is_tpu(self) -> bool:
        return False

    def is_xpu(self) -> bool:
        return False

    def is_neuron(self) -> bool:
        return False

    def is_out_of_tree(self) -> bool:
        """Whether a plug-in supplies it: there are none."""
        return False

    def get_device_name(self, device_id: int = 0) -> str:
        return self.name

    def get_device_total_memory(self, device_id: int = 0) -> int:
        """Bytes."""
        return self.device(device_id).memory().total_bytes

    def get_device_capability(self, device_id: int = 0) -> None:
        """Of CUDA alone."""

    def has_device_capability(self, capability: Any, device_id: int = 0) -> bool:
        return False

    def is_pin_memory_available(self) -> bool:
        return self.capabilities.pinned_memory

    def is_async_output_supported(self, enforce_eager: bool | None = None) -> bool:
        return True

    def inference_mode(self) -> torch.inference_mode:
        return torch.inference_mode(mode=True)

    def seed_everything(self, seed: int | None = None) -> None:
        """Of Python's, NumPy's and torch's generators, which the engine draws nothing from."""
        if seed is not None:
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
