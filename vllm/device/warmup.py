"""Warm-up: what a device asks of the model runner before requests come."""

from __future__ import annotations

from typing import Protocol

from vllm.device.device import Device
from vllm.device.graphs import GraphRunner
from vllm.device.launch import Launch
from vllm.device.planner import Planner


class WarmUpRunner(Protocol):
    """The model runner, as far as warm-up uses it."""

    device: Device
    planner: Planner
    graphs: GraphRunner

    def rehearse(self, launch: Launch, ends_all_ways: bool = False, captures: bool = False) -> None:
        """Run a launch of dummy rows and end it, in one way or all usual ones.

        `captures`: capture it first.
        """
        ...

    def rehearse_transfer(self, launch: Launch) -> None:
        """Receive dummy hidden states of a launch, and send such, where there are several stages.

        All stages call it alike: each waits for the one before.
        """
        ...

    def rehearse_puts(self, num_rows: int) -> None:
        """Write this many rows of what plans write, to the dummy slot."""
        ...
