"""What a launch gives the model: one part per kind of inputs."""

from __future__ import annotations

from abc import ABC, abstractmethod

from vllm.device.launch import ForwardInputs, Launch, TokenInputs
from vllm.worker.slots import Slots


class LaunchInputs(ABC):
    """Gathers the inputs of launches, all of one kind."""

    @abstractmethod
    def gather(self, launch: Launch) -> ForwardInputs:
        """Inputs of T = launch.num_tokens tokens, on the device. Does not synchronise."""


class GatherTokens(LaunchInputs):
    """Token ids and positions, from the slots.

    Ids come from device memory, so that tokens of steps still in flight are seen.
    """

    def __init__(self, slots: Slots) -> None:
        self._slots = slots

    def gather(self, launch: Launch) -> TokenInputs:
        slots = self._slots
        token_slots = launch.slots_np[launch.token_rows_np]
        token_ids = slots.read(slots.flat_index(token_slots, launch.positions_np))
        return TokenInputs(token_ids, slots.device.upload(launch.positions_np))
