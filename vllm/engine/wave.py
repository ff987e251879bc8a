"""Steps that the engine cores of several copies take together.

Where copies share experts, a rank with work needs the ranks of all copies in each of its launches.
So all cores submit steps for as long as one of them has something to plan: a wave. Waves are
numbered. A core that has something to plan between waves begins the next one and tells the others,
and a word of a wave that is over changes nothing.

All cores submit the same number of steps without a word between them, because when they submit is a
function of results that all have alike: the pipeline is kept full until the result of a step says
that no copy had anything to launch. Then nothing is submitted until the next result, and with the
last step in flight the wave is over.
"""

from __future__ import annotations

from collections.abc import Callable

from vllm.messages.step import StepResult


class NoWaves:
    """A core that submits steps as it pleases."""

    is_on = False  # steps are submitted whether or not there is something to plan

    @property
    def admits(self) -> bool:
        """Whether a step may be submitted now."""
        return True

    def begin(self) -> None:
        """This core has planned something."""

    def enter(self, number: int) -> None:
        """Another core has begun the wave `number`."""

    def note(self, result: StepResult, num_inflight: int) -> None:
        """The oldest step has committed, and so many are left in flight."""


class Waves(NoWaves):
    """The waves of one core of several."""

    def __init__(self, tell: Callable[[int], None]) -> None:
        """`tell` the other cores that the wave of this number begins."""
        self._tell = tell
        self.number = 0  # of this wave, or of the last one
        self._is_next_begun = False
        self._is_draining = False

    @property
    def admits(self) -> bool:
        return not self._is_draining

    def begin(self) -> None:
        if not self.is_on:
            self.number += 1
            self.is_on = True
            self._tell(self.number)

    def enter(self, number: int) -> None:
        if number <= self.number:
            return
        if self.is_on:  # the other has seen the end of this wave before
            self._is_next_begun = True
        else:
            self.number, self.is_on = number, True

    def note(self, result: StepResult, num_inflight: int) -> None:
        self._is_draining = result.is_idle
        if not result.is_idle or num_inflight:
            return
        self._is_draining = False
        self.is_on = self._is_next_begun
        self.number += self._is_next_begun
        self._is_next_begun = False
