"""Which rows of a launch draw a token, and where everything lies that this needs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vllm.device.launch import Launch, Phase, ascending
from vllm.messages.step import Int32Array, StepPlan
from vllm.sample.interface import NO_MASK
from vllm.worker.slots import DUMMY_SLOT


@dataclass(frozen=True, slots=True)
class Draws:
    """S rows whose last hidden state is drawn from; D of them for a request.

    In a padded launch S is the number of its rows, and rows without a request have the dummy slot;
    in any other S = D.
    """

    plan_rows_np: Int32Array  # [D] rows of the StepPlan, ascending
    picked_np: Int32Array  # [D] which of the S they are
    hidden_np: Int32Array  # [S] the launch's token whose hidden state is meant
    slots_np: Int32Array  # [S]
    positions_np: Int32Array  # [S] position that the drawn token takes
    masks_np: Int32Array  # [S] row of `masks`
    masks: Int32Array  # [G, ceil(V / 32)]


def draws_of(plan: StepPlan, launch: Launch) -> Draws | None:
    """The draws of a launch of this plan; None if it has none."""
    has_dummies = len(launch.plan_rows_np) < launch.num_rows
    is_exact = not launch.is_padded and not has_dummies
    if is_exact and plan.samples.all() and launch.key.phase is Phase.DECODE:
        return _draws_of_all(plan, launch)
    drawing = np.flatnonzero(plan.samples[launch.plan_rows_np]).astype(np.int32)
    if not len(drawing):
        return None
    plan_rows = launch.plan_rows_np[drawing]
    rows: Int32Array | slice
    if launch.is_padded:
        slots = np.full(launch.num_rows, DUMMY_SLOT, np.int32)
        slots[drawing] = launch.slots_np[drawing]
        positions = np.zeros(launch.num_rows, np.int32)
        positions[drawing] = launch.starts_np[drawing] + launch.counts_np[drawing]
        rows = slice(None)
        picked = drawing
    else:
        slots = launch.slots_np[drawing]
        positions = launch.starts_np[drawing] + launch.counts_np[drawing]
        rows = drawing
        picked = np.arange(len(drawing), dtype=np.int32)
    hidden = launch.query_start_np[:-1][rows] + np.maximum(launch.counts_np[rows] - 1, 0)
    masks_np, masks = _masks(plan, plan_rows, picked, len(slots), launch.is_padded)
    return Draws(plan_rows, picked, hidden, slots, positions, masks_np, masks)


def _draws_of_all(plan: StepPlan, launch: Launch) -> Draws:
    """Where every row has one token, and draws the next."""
    rows = ascending(launch.num_rows)
    masks_np, masks = _masks(plan, launch.plan_rows_np, rows, launch.num_rows, False)
    positions = launch.starts_np + 1
    return Draws(launch.plan_rows_np, rows, rows, launch.slots_np, positions, masks_np, masks)


def dummy_draws(launch: Launch) -> Draws:
    """Draws from every row of a launch of dummy rows, whose tokens go to the dummy slot."""
    num_rows = launch.num_rows
    no_rows = np.empty(0, np.int32)
    zeros = np.zeros(num_rows, np.int32)
    return Draws(
        plan_rows_np=no_rows,
        picked_np=no_rows,
        hidden_np=launch.query_start_np[:-1],
        slots_np=np.full(num_rows, DUMMY_SLOT, np.int32),
        positions_np=zeros,
        masks_np=np.full(num_rows, NO_MASK, np.int32),
        masks=np.empty((0, 0), np.int32),
    )


def _masks(
    plan: StepPlan, plan_rows: Int32Array, picked: Int32Array, num_rows: int, is_padded: bool
) -> tuple[Int32Array, Int32Array]:
    """Which mask applies to each row, and the masks: in a padded launch, one per row."""
    masks_np = np.full(num_rows, NO_MASK, np.int32)
    if not len(plan.masked_rows):
        return masks_np, plan.masks
    of_plan = np.full(plan.num_rows, NO_MASK, np.int32)
    of_plan[plan.masked_rows] = np.arange(len(plan.masked_rows))
    masks_np[picked] = of_plan[plan_rows]
    if not (masks_np != NO_MASK).any():
        return masks_np, plan.masks[:0]
    if not is_padded:
        return masks_np, plan.masks
    masks = np.full((num_rows, plan.masks.shape[1]), -1, np.int32)
    masked = np.flatnonzero(masks_np != NO_MASK)
    masks[masked] = plan.masks[masks_np[masked]]
    masks_np[masked] = masked
    return masks_np, masks
