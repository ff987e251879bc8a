"""Model inputs of a launch, gathered from the slots."""

from __future__ import annotations

from vllm.device.launch import ForwardInputs, Launch
from vllm.worker.slots import Slots


def gather_inputs(slots: Slots, launch: Launch) -> ForwardInputs:
    """Token ids and positions, int32 [T] on the device.

    Ids come from device memory, so that tokens of steps still in flight are seen. Does not
    synchronise.
    """
    token_slots = launch.slots_np[launch.token_rows_np]
    token_ids = slots.read(slots.flat_index(token_slots, launch.positions_np))
    return ForwardInputs(token_ids, slots.device.upload(launch.positions_np))
