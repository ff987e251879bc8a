"""What a model runner tells those who watch its steps."""

from __future__ import annotations

from collections.abc import Sequence

from vllm.device.launch import Launch
from vllm.messages.shapes import ShapeUsage
from vllm.messages.step import StepPlan


class StepObserver:
    """Does nothing; those who watch override what they need.

    Of a step: step_begins, then for each launch launch_begins, receiving_begins and receiving_ends
    on a pipeline stage after the first, drawing_begins if it draws tokens, launch_ends; then
    step_ends. A step that fails ends with the next step_begins. All are told when
    work has been queued, not when the device has done it.
    """

    def step_begins(self, plan: StepPlan) -> None:
        pass

    def launch_begins(self, launch: Launch) -> None:
        pass

    def receiving_begins(self, launch: Launch) -> None:
        pass

    def receiving_ends(self, launch: Launch) -> None:
        pass

    def drawing_begins(self, launch: Launch) -> None:
        pass

    def launch_ends(self, launch: Launch) -> None:
        pass

    def step_ends(self, plan: StepPlan) -> None:
        pass

    def rehearsal_begins(self, launch: Launch, captures: bool) -> None:
        pass

    def rehearsal_ends(self, launch: Launch, captures: bool) -> None:
        pass

    def warm_up_ends(self) -> None:
        pass

    def shapes(self) -> list[ShapeUsage] | None:
        """Of every shape so far; None: nobody counts."""
        return None

    def close(self) -> None:
        """Nothing more will come."""


class Observers(StepObserver):
    """Several, told in order."""

    def __init__(self, observers: Sequence[StepObserver]) -> None:
        self._observers = tuple(observers)

    def step_begins(self, plan: StepPlan) -> None:
        for observer in self._observers:
            observer.step_begins(plan)

    def launch_begins(self, launch: Launch) -> None:
        for observer in self._observers:
            observer.launch_begins(launch)

    def receiving_begins(self, launch: Launch) -> None:
        for observer in self._observers:
            observer.receiving_begins(launch)

    def receiving_ends(self, launch: Launch) -> None:
        for observer in self._observers:
            observer.receiving_ends(launch)

    def drawing_begins(self, launch: Launch) -> None:
        for observer in self._observers:
            observer.drawing_begins(launch)

    def launch_ends(self, launch: Launch) -> None:
        for observer in self._observers:
            observer.launch_ends(launch)

    def step_ends(self, plan: StepPlan) -> None:
        for observer in self._observers:
            observer.step_ends(plan)

    def rehearsal_begins(self, launch: Launch, captures: bool) -> None:
        for observer in self._observers:
            observer.rehearsal_begins(launch, captures)

    def rehearsal_ends(self, launch: Launch, captures: bool) -> None:
        for observer in self._observers:
            observer.rehearsal_ends(launch, captures)

    def warm_up_ends(self) -> None:
        for observer in self._observers:
            observer.warm_up_ends()

    def shapes(self) -> list[ShapeUsage] | None:
        tables = [observer.shapes() for observer in self._observers]
        return next((table for table in tables if table is not None), None)

    def close(self) -> None:
        for observer in self._observers:
            observer.close()


def observer_of(observers: Sequence[StepObserver]) -> StepObserver:
    """All of them as one."""
    if not observers:
        return StepObserver()
    return observers[0] if len(observers) == 1 else Observers(observers)
