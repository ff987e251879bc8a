"""How a step is cut into launches of the model: the one policy a device brings along."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from vllm.device.agreement import JoinedLaunch, LaunchSize
from vllm.device.launch import Launch, Phase, ascending, make_launch
from vllm.device.placement import Placement
from vllm.messages.step import StepPlan


class Planner(ABC):
    """Cuts steps into launches."""

    placement: Placement = Placement()  # of the blocks whose numbers it knows

    @abstractmethod
    def split(self, plan: StepPlan) -> Sequence[Launch]:
        """Launches that together hold every row of the plan once; none for a plan without rows."""

    def close(self) -> None:
        """No more steps will come."""

    @abstractmethod
    def together(
        self, launches: Sequence[Launch], sizes: Sequence[Sequence[LaunchSize]]
    ) -> Iterator[JoinedLaunch]:
        """This rank's part in a step whose launches all copies of the model run together.

        `launches` are its own, and `sizes` those of every copy, in order. The number of parts is
        the same on all ranks; a part without a launch of its own has rows of the dummy slot.
        """

    @abstractmethod
    def rehearsal(self, num_tokens: int, max_row_tokens: int) -> Launch:
        """A launch of about `num_tokens` tokens in rows of the dummy slot, which nobody reads."""


class UnifiedPlanner(Planner):
    """One mixed launch of the exact shape, for devices that take any shape."""

    def __init__(self, block_size: int) -> None:
        """`block_size`: 0 for models without a KV cache."""
        self.block_size = block_size

    def split(self, plan: StepPlan) -> Sequence[Launch]:
        if plan.num_rows == 0:
            return ()
        return (make_launch(plan.slots, plan.starts, plan.counts, self.block_size),)

    def together(
        self, launches: Sequence[Launch], sizes: Sequence[Sequence[LaunchSize]]
    ) -> Iterator[JoinedLaunch]:
        present = [of_copy[0] for of_copy in sizes if of_copy]
        if not present:
            return
        most = max(size.num_tokens for size in present)
        if all(size.key.phase is Phase.DECODE for size in present):
            # Of one length, so that what is captured for a number of rows holds for all.
            yield JoinedLaunch(self._with_dummies(launches, most), most)
            return
        launch = launches[0] if launches else self.rehearsal_of([1])
        # A captured decode step would take all copies to have as many tokens as this one.
        yield JoinedLaunch(replace(launch, key=replace(launch.key, phase=Phase.MIXED)), most)

    def _with_dummies(self, launches: Sequence[Launch], num_rows: int) -> Launch:
        """Rows that decode, and after them rows of the dummy slot."""
        if not launches:
            return self.rehearsal_of([1] * num_rows)
        (launch,) = launches
        missing = num_rows - launch.num_rows
        if not missing:
            return launch
        return make_launch(
            np.pad(launch.slots_np, (0, missing)),  # the dummy slot is slot 0
            np.pad(launch.starts_np, (0, missing)),
            np.ones(num_rows, np.int32),
            self.block_size,
            ascending(launch.num_rows),
        )

    def rehearsal(self, num_tokens: int, max_row_tokens: int) -> Launch:
        full, rest = divmod(num_tokens, max_row_tokens)
        return self.rehearsal_of([max_row_tokens] * full + ([rest] if rest else []))

    def rehearsal_of(self, counts: Sequence[int]) -> Launch:
        """A launch of dummy rows with these numbers of tokens."""
        zeros = np.zeros(len(counts), np.int32)  # the dummy slot is slot 0
        no_rows = zeros[:0]  # of a plan
        counts_np = np.array(counts, np.int32)
        return make_launch(zeros, zeros.copy(), counts_np, self.block_size, no_rows)
