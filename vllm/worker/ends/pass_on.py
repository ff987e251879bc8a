"""The end of launches on a pipeline stage before the last: the next stage goes on."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from vllm.device.launch import Launch
from vllm.device.stage_link import StageLink
from vllm.messages.step import StepPlan
from vllm.worker.ends.launch_end import LaunchEnd, StepAnswer
from vllm.worker.ends.silent import NOTHING


class PassOn(LaunchEnd[None]):
    """Sends hidden states to the next stage. The last stage answers for all."""

    def __init__(self, link: StageLink) -> None:
        self._link = link

    def finish(self, plan: StepPlan, launch: Launch, hidden: Tensor) -> None:
        self._link.send(hidden)

    def join(self, step: int, endings: Sequence[None]) -> StepAnswer:
        return NOTHING

    def rehearse(self, launch: Launch, hidden: Tensor, all_ways: bool) -> None:
        """Nothing: the next stage receives nothing in warm-up."""
