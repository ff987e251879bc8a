"""One op on the host, on the device and without data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import habana_frameworks.torch  # noqa: F401 - registers the device
import torch
from torch import Tensor


def moved(value: Any, device: str) -> Any:
    if isinstance(value, Tensor):
        return value.clone().to(device)
    if isinstance(value, list | tuple):
        return [moved(item, device) for item in value]
    return value


def listed(result: Tensor | tuple[Tensor, ...]) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


def everywhere(op: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """The op's result on the host, which is that of the device and has the shapes of Meta."""
    on = {
        device: op(*moved(args, device), **{k: moved(v, device) for k, v in options.items()})
        for device in ("cpu", "hpu", "meta")
    }
    host, device, meta = (listed(on[name]) for name in ("cpu", "hpu", "meta"))
    assert len(host) == len(device) == len(meta)
    for ours, theirs, shape in zip(host, device, meta, strict=True):
        assert (theirs.device.type, shape.device.type) == ("hpu", "meta")
        assert ours.dtype == theirs.dtype == shape.dtype
        assert ours.shape == theirs.shape == shape.shape
        copy = theirs.cpu()
        both = (ours, copy) if ours.element_size() > 1 else (ours.float(), copy.float())
        assert torch.equal(*(torch.nan_to_num(each, nan=123.0) for each in both))
    return on["cpu"]


def assert_near(found: Tensor, wanted: Tensor, scale: float = 1.0) -> None:
    """Within the rounding of found's dtype of what float64 gives; scale: of larger sums."""
    assert found.shape == wanted.shape
    step = {torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}[found.dtype]
    torch.testing.assert_close(found.double(), wanted.double(), rtol=step, atol=step * scale)
