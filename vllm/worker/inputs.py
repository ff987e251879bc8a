"""What a launch gives the model: one part per kind of inputs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor

from vllm.device.device import Device
from vllm.device.launch import ForwardInputs, Launch, StageInputs, TokenInputs
from vllm.device.observer import StepObserver
from vllm.device.stage_link import StageLink
from vllm.worker.slots import Slots


class LaunchInputs(ABC):
    """Gathers the inputs of launches, all of one kind."""

    @abstractmethod
    def gather(self, launch: Launch) -> ForwardInputs:
        """Inputs of T = launch.num_tokens tokens, on the device. Does not synchronise."""

    def rehearse(self, launch: Launch) -> ForwardInputs:
        """Inputs of a launch of dummy rows, of the same shapes; for warm-up."""
        return self.gather(launch)

    def rehearse_transfer(self, launch: Launch) -> None:
        """Receive dummy hidden states [T, H] from the stage before; nothing without one."""


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


class ReceiveHidden(LaunchInputs):
    """Hidden states from the pipeline stage before this one, and positions.

    Padded launches have few shapes: their hidden states are received where a captured graph reads
    them. A launch of any other shape has memory of its own.
    """

    def __init__(
        self,
        link: StageLink,
        device: Device,
        new_hidden: Callable[[int], Tensor],
        observer: StepObserver,
    ) -> None:
        """`new_hidden`: T -> memory [T, H] for hidden states."""
        self._link = link
        self._device = device
        self._new_hidden = new_hidden
        self._observer = observer
        self._buffers: dict[int, Tensor] = {}  # by number of tokens

    def gather(self, launch: Launch) -> StageInputs:
        buffer = self._buffer(launch)
        self._observer.receiving_begins(launch)
        self._link.receive(buffer)
        self._observer.receiving_ends(launch)
        return StageInputs(buffer, self._device.upload(launch.positions_np))

    def rehearse(self, launch: Launch) -> StageInputs:
        """The stage before does not send: stages need not rehearse the same launches."""
        return StageInputs(self._buffer(launch).zero_(), self._device.upload(launch.positions_np))

    def rehearse_transfer(self, launch: Launch) -> None:
        self._link.receive(self._buffer(launch))

    def _buffer(self, launch: Launch) -> Tensor:
        if not launch.is_padded:
            return self._new_hidden(launch.num_tokens)
        if launch.num_tokens not in self._buffers:
            self._buffers[launch.num_tokens] = self._new_hidden(launch.num_tokens)
        return self._buffers[launch.num_tokens]
