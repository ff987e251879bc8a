"""How a step is cut into launches of the model: the one policy a device brings along."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from vllm.device.launch import Launch, make_launch
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

    def rehearsal(self, num_tokens: int, max_row_tokens: int) -> Launch:
        full, rest = divmod(num_tokens, max_row_tokens)
        return self.rehearsal_of([max_row_tokens] * full + ([rest] if rest else []))

    def rehearsal_of(self, counts: Sequence[int]) -> Launch:
        """A launch of dummy rows with these numbers of tokens."""
        zeros = np.zeros(len(counts), np.int32)  # the dummy slot is slot 0
        return make_launch(zeros, zeros.copy(), np.array(counts, np.int32), self.block_size)
