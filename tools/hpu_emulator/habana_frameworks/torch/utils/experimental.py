"""Device generation and raw handles."""

from __future__ import annotations

import enum

import torch
from hpu_emulator import _C
from hpu_emulator.runtime import SETTINGS
from torch import Tensor


class synDeviceType(enum.IntEnum):
    synDeviceGaudi = 1
    synDeviceGaudi2 = 4
    synDeviceGaudi3 = 5


def _get_device_type() -> synDeviceType:
    return {2: synDeviceType.synDeviceGaudi2, 3: synDeviceType.synDeviceGaudi3}[
        SETTINGS.generation.number
    ]


def _is_fp16_supported() -> bool:
    return True


def _data_ptr(tensor: Tensor) -> int:
    """Address on the device, which is an address of this process."""
    if tensor.device.type != "hpu":
        raise RuntimeError(f"_data_ptr: the tensor is on {tensor.device}, not on hpu")
    return int(_C.data_ptr(tensor))


def _compute_stream() -> int:
    return int(torch.hpu.default_stream().stream_id)


def _reset_device_memory() -> None:
    raise NotImplementedError("the emulated device's memory is reset by ending the process")


def _set_profiler_tracer_memory(device_id: int) -> None:
    raise NotImplementedError("the device's hardware tracer is not emulated")


def _set_is_dynamic_quantization(is_dynamic: bool) -> None:
    raise NotImplementedError("scales patched into recipes at run time are not emulated")


def _set_scale_attributes(*attributes: object) -> None:
    raise NotImplementedError("scales patched into recipes at run time are not emulated")
