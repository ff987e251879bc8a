"""Which devices there are and which one is used."""

from __future__ import annotations

import os
from dataclasses import dataclass
from types import TracebackType

import torch
from hpu_emulator import _C, modules
from hpu_emulator.runtime import SETTINGS
from hpu_emulator.settings import visible_modules
from torch import Tensor

Device = torch.device | str | int | None


@dataclass(frozen=True, slots=True)
class DeviceProperties:
    name: str
    total_memory: int  # bytes
    major: int  # generation
    minor: int
    multi_processor_count: int  # TPCs


def index_of(device: Device = None) -> int:
    if device is None:
        return int(_C.current_device())
    if isinstance(device, int):
        return device
    chosen = torch.device(device)
    if chosen.type != "hpu":
        raise ValueError(f"expected an hpu device, not {device}")
    return int(_C.current_device()) if chosen.index is None else chosen.index


def init() -> None:
    """Takes the device; raises RuntimeError where there is none or another process has it."""
    if device_count() == 0:
        raise RuntimeError("synStatus=8 [Device not found] No HPU devices are available")
    torch.empty(1, dtype=torch.uint8, device="hpu")


def is_initialized() -> bool:
    return modules.module_of(index_of()) is not None


def is_available() -> bool:
    """Never raises."""
    return device_count() > 0


def device_count() -> int:
    return int(_C.device_count())


def synchronize(device: Device = None) -> None:
    """Waits for everything that was launched."""
    _C.synchronize()


def set_device(device: Device) -> None:
    """Chooses the module of this process by its index among the visible ones.

    A process uses one HPU, which it knows as device 0. Where HLS_MODULE_ID is set, it stays.
    """
    index = index_of(device)
    if index < 0 or "HLS_MODULE_ID" in os.environ:
        return
    visible = visible_modules(SETTINGS.num_modules)
    if "HABANA_VISIBLE_MODULES" not in os.environ and len(visible) < 8 and index != 0:
        raise RuntimeError(
            f"set_device({index}): only device 0 can be used where fewer than 8 devices exist and "
            "HABANA_VISIBLE_MODULES is not set"
        )
    if index >= len(visible):
        raise RuntimeError(f"set_device({index}): there are {len(visible)} visible devices")
    os.environ["HLS_MODULE_ID"] = str(visible[index])


def current_device() -> int:
    return int(_C.current_device())


class device:
    """Makes another device current for a block."""

    def __init__(self, device: Device) -> None:
        self.idx = index_of(device)
        self._before = -1

    def __enter__(self) -> None:
        self._before = int(_C.current_device())
        if self.idx >= 0:
            _C.set_current_device(self.idx)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _C.set_current_device(self._before)


class device_of(device):
    """Makes the device of a tensor current; does nothing for a tensor elsewhere."""

    def __init__(self, tensor: Tensor) -> None:
        super().__init__(tensor.get_device() if tensor.device.type == "hpu" else -1)


def get_device_name(device: Device = None) -> str:
    _check(device)
    return SETTINGS.generation.name


def get_device_capability(device: Device = None) -> tuple[int, int]:
    _check(device)
    return SETTINGS.generation.number, 0


def get_device_properties(device: Device = None) -> DeviceProperties:
    _check(device)
    generation = SETTINGS.generation
    tpcs = 24 if generation.number == 2 else 64
    return DeviceProperties(
        generation.name, SETTINGS.memory_bytes, generation.number, 0, multi_processor_count=tpcs
    )


def can_device_access_peer(device: Device, peer_device: Device) -> bool:
    """No: devices exchange data through collectives."""
    return _check(device) == _check(peer_device)


def is_bf16_supported() -> bool:
    return True


def _check(device: Device) -> int:
    index = index_of(device)
    if not 0 <= index < device_count():
        raise RuntimeError(f"hpu:{index}: there are {device_count()} visible devices")
    return index


def _lazy_init() -> None:
    """What torch calls before the first tensor on the device."""
    if device_count() == 0:
        raise RuntimeError("synStatus=8 [Device not found] No HPU devices are available")


def _is_in_bad_fork() -> bool:
    return modules.is_in_bad_fork()
