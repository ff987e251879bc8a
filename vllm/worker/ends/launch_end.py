"""The end of a launch: what becomes of its hidden states, and of a step's launches together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

import msgspec
from torch import Tensor

from vllm.device.device import HostCopy
from vllm.device.launch import Launch
from vllm.messages.step import StepPlan, StepResult

Download = Callable[[Tensor], HostCopy]  # Device.download, or what a silent rank has instead
Ending = TypeVar("Ending")  # values of one launch, on their way to the host


class StepAnswer(Protocol):
    """The answer of a rank to a step whose device work is queued."""

    def result(self) -> StepResult | None:
        """Wait for the values; None at once if this rank answers without."""
        ...


class IdleAnswer:
    """The answer to a step in which no copy of the model had anything to launch."""

    def __init__(self, answer: StepAnswer) -> None:
        self._answer = answer

    def result(self) -> StepResult | None:
        result = self._answer.result()
        return None if result is None else msgspec.structs.replace(result, is_idle=True)


class LaunchEnd(ABC, Generic[Ending]):
    """What a runner does with hidden states. One kind per purpose, such as DrawTokens.

    An end copies to the host only through the `Download` that it is constructed with, and waits
    for such a copy only in `StepAnswer.result`. So an end does not know whether its rank answers
    with values: `Silent` makes any end one that does not.
    """

    @abstractmethod
    def finish(self, plan: StepPlan, launch: Launch, hidden: Tensor) -> Ending | None:
        """Queue what follows a launch of `plan`, and start copying its values to the host.

        `hidden` [T, H] is valid until the next launch. None: the launch has no values.
        """

    @abstractmethod
    def join(self, step: int, endings: Sequence[Ending]) -> StepAnswer:
        """The answer to step number `step`, of its endings in order of launches. Does not wait.

        Called once per step, after its last `finish`.
        """

    @abstractmethod
    def rehearse(self, launch: Launch, hidden: Tensor, all_ways: bool) -> None:
        """Do for a launch of dummy rows what `finish` does, in one way or all usual ones.

        For warm-up: waits for the values, whether or not this rank answers with any.
        """

    def rehearse_transfer(self, launch: Launch) -> None:
        """Send dummy hidden states [T, H] of a launch to the next stage; nothing without one."""
