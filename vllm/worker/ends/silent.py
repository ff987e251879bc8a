"""The end of launches on ranks other than the driver: the same device work, and no answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

from vllm.device.device import Device, HostCopy
from vllm.device.launch import Launch
from vllm.messages.step import StepPlan
from vllm.worker.ends.launch_end import Download, Ending, LaunchEnd, StepAnswer


class Silent(LaunchEnd[Ending]):
    """Any end, on a rank that answers without values: nothing is copied to the host.

    A unit of device work ends where the driver's copy would end it, while its results live: what a
    unit consists of and what outlives it is a part of what devices compile.
    """

    def __init__(self, make_end: Callable[[Download], LaunchEnd[Ending]], device: Device) -> None:
        self._device = device
        self._end = make_end(self._end_unit)

    def finish(self, plan: StepPlan, launch: Launch, hidden: Tensor) -> Ending | None:
        return self._end.finish(plan, launch, hidden)

    def join(self, step: int, endings: Sequence[Ending]) -> StepAnswer:
        self._end.join(step, endings)  # which takes what the end has collected for this step
        return NOTHING

    def rehearse(self, launch: Launch, hidden: Tensor, all_ways: bool) -> None:
        self._end.rehearse(launch, hidden, all_ways)

    def _end_unit(self, tensor: Tensor) -> HostCopy:
        self._device.step_boundary()
        return _NO_COPY


class _NoCopy:
    def wait(self) -> np.ndarray:
        raise AssertionError("a silent rank has no values on the host")


class _Nothing:
    def result(self) -> None:
        return None


_NO_COPY = _NoCopy()
NOTHING = _Nothing()
