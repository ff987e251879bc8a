"""The end of launches on a pipeline stage before the last: the next stage goes on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from vllm.device.launch import Launch
from vllm.device.stage_link import StageLink
from vllm.messages.step import StepPlan
from vllm.worker.ends.launch_end import LaunchEnd, StepAnswer
from vllm.worker.ends.silent import NOTHING


class PassOn(LaunchEnd[None]):
    """Sends hidden states to the next stage. The last stage answers for all."""

    def __init__(self, link: StageLink, new_hidden: Callable[[int], Tensor]) -> None:
        """`new_hidden`: T -> memory [T, H] for hidden states."""
        self._link = link
        self._new_hidden = new_hidden

    def finish(self, plan: StepPlan, launch: Launch, hidden: Tensor) -> None:
        self._link.send(hidden)

    def join(self, step: int, endings: Sequence[None]) -> StepAnswer:
        return NOTHING

    def rehearse(self, launch: Launch, hidden: Tensor, all_ways: bool) -> None:
        """Nothing: the next stage does not receive what launches of warm-up make."""

    def rehearse_transfer(self, launch: Launch) -> None:
        self._link.send(self._new_hidden(launch.num_tokens).zero_())
