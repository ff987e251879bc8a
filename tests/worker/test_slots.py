from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given as drawn_from
from hypothesis import settings
from hypothesis import strategies as st

from vllm.device.device import Device, HostCopy, MemoryInfo
from vllm.device.planner import UnifiedPlanner
from vllm.messages.cache import BlockNeeds
from vllm.messages.step import Admission, StepPlan
from vllm.ops.registry import resolve
from vllm.platforms import platform_of
from vllm.sample.state import SamplingState
from vllm.sampling_params import SamplingParams
from vllm.worker.inputs import GatherTokens
from vllm.worker.slots import DUMMY_SLOT, Slots, SlotsShape

SHAPE = SlotsShape(
    max_num_seqs=3,
    max_model_len=20,
    pipeline_depth=2,
    vocab_size=50,
    kv_groups=(BlockNeeds(4), BlockNeeds(8)),
)


class DistantDevice(Device):
    """Memory of its own: what is uploaded is copied, and later changes of the array do not show."""

    torch_device = torch.device("cpu")

    def memory(self) -> MemoryInfo:
        return MemoryInfo(0, 0, 0)

    def upload(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.array(array))

    def download(self, tensor: torch.Tensor) -> HostCopy:
        raise NotImplementedError

    def synchronize(self) -> None:
        pass

    def peak_bytes(self, run: Callable[[], object]) -> int:
        raise NotImplementedError


def make_slots(device: Device) -> Slots:
    sampling = SamplingState(
        SHAPE.num_slots,
        SHAPE.vocab_size,
        SHAPE.max_tokens,
        device,
        resolve({}),
    )
    return Slots(SHAPE, device, sampling)


@pytest.fixture(params=["own-memory", "host-memory"])
def slots(request: pytest.FixtureRequest) -> Slots:
    if request.param == "own-memory":
        return make_slots(DistantDevice())
    return make_slots(platform_of("cpu").device(0))


def delta(
    releases: list[int] = [],  # noqa: B006
    admissions: tuple[Admission, ...] = (),
    blocks: list[tuple[int, int, int, int]] = [],  # noqa: B006
    rows: list[tuple[int, int, int]] = [],  # noqa: B006
    given: list[tuple[int, int, int]] = [],  # noqa: B006
) -> StepPlan:
    slots, starts, counts = np.array(rows, np.int32).reshape(-1, 3).T.copy()
    return StepPlan(
        step=0,
        slots=slots,
        starts=starts,
        counts=counts,
        samples=np.ones(len(rows), bool),
        releases=np.array(releases, np.int32),
        admissions=admissions,
        blocks=np.array(blocks, np.int32).reshape(-1, 4),
        given=np.array(given, np.int32).reshape(-1, 3),
    )


def admission(slot: int, token_ids: list[int], **params: object) -> Admission:
    sampling = SamplingParams(seed=1, **params)  # type: ignore[arg-type]
    return Admission(slot, f"r{slot}", np.array(token_ids, np.int32), len(token_ids), sampling)


ADMIT = st.tuples(
    st.integers(1, SHAPE.max_num_seqs),
    st.lists(st.integers(0, 49), min_size=1, max_size=20),
)
BLOCK = st.tuples(
    st.integers(1, SHAPE.max_num_seqs),
    st.integers(0, 1),
    st.integers(0, 2),
    st.integers(1, 99),
)
GIVEN = st.tuples(
    st.integers(1, SHAPE.max_num_seqs),
    st.integers(0, SHAPE.max_tokens - 1),
    st.integers(0, 49),
)
Triple = tuple[int, int, int]
STEP = st.tuples(
    st.lists(st.integers(1, SHAPE.max_num_seqs), max_size=2),
    st.lists(ADMIT, max_size=2, unique_by=lambda a: a[0]),
    st.lists(BLOCK, max_size=6, unique_by=lambda b: b[:3]),
    st.lists(GIVEN, max_size=9, unique_by=lambda g: g[:2]),
)


@settings(max_examples=60, deadline=None)
@drawn_from(steps=st.lists(STEP, max_size=6), distant=st.booleans())
def test_device_rows_follow_any_sequence_of_deltas(
    steps: list[
        tuple[list[int], list[tuple[int, list[int]]], list[tuple[int, int, int, int]], list[Triple]]
    ],
    distant: bool,
) -> None:
    slots = make_slots(DistantDevice() if distant else platform_of("cpu").device(0))
    tokens = [[0] * SHAPE.max_tokens for _ in range(SHAPE.num_slots)]
    tables: dict[tuple[int, int, int], int] = {}
    for releases, admits, blocks, given in steps:
        admissions = tuple(admission(slot, ids) for slot, ids in admits)
        slots.apply(delta(releases, admissions, blocks, given=given))
        for slot, ids in admits:
            tokens[slot][: len(ids)] = ids
        for slot, position, token in given:
            tokens[slot][position] = token
        for slot, group, column, block in blocks:
            tables[slot, group, column] = block
    assert slots.tokens.tolist() == tokens
    for (slot, group, column), block in tables.items():
        assert slots.tables[group].blocks_np[slot, column] == block
    for group, table in enumerate(slots.tables):
        assert not table.blocks_np[0].any(), "the dummy slot must keep to the dummy block"
        assert np.count_nonzero(table.blocks_np) == sum(g == group for _, g, _ in tables)


def test_inputs_hold_tokens_drawn_by_steps_that_the_host_has_not_read(
    slots: Slots,
) -> None:
    slots.apply(delta(admissions=(admission(1, [5, 6, 7]), admission(3, [8]))))
    slots.write_drawn(
        np.array([1, 3], np.int32),
        np.array([3, 1], np.int32),
        torch.tensor([41, 42], dtype=torch.int32),
    )
    (launch,) = UnifiedPlanner(4).split(delta(rows=[(3, 1, 1), (1, 1, 3)]))
    inputs = GatherTokens(slots).gather(launch)
    assert inputs.token_ids.tolist() == [42, 6, 7, 41]
    assert inputs.positions.tolist() == [1, 1, 2, 3]
    assert inputs.token_ids.dtype == inputs.positions.dtype == torch.int32


def test_a_given_token_replaces_what_an_earlier_step_drew_and_not_what_a_later_one_draws(
    slots: Slots,
) -> None:
    slots.apply(delta(admissions=(admission(1, [5, 6]),)))
    slots.write_drawn(*at(1, 2), torch.tensor([40], dtype=torch.int32))
    slots.apply(delta(given=[(1, 2, 41)]))
    assert slots.tokens[1, :4].tolist() == [5, 6, 41, 0]
    slots.write_drawn(*at(1, 2), torch.tensor([42], dtype=torch.int32))
    assert slots.tokens[1, :4].tolist() == [5, 6, 42, 0]


def at(slot: int, position: int) -> tuple[np.ndarray, np.ndarray]:
    return np.array([slot], np.int32), np.array([position], np.int32)


@pytest.mark.parametrize(
    "given", [(DUMMY_SLOT, 0, 1), (SHAPE.num_slots, 0, 1), (1, -1, 1), (1, SHAPE.max_tokens, 1)]
)
def test_a_given_token_without_a_place_is_refused(slots: Slots, given: Triple) -> None:
    with pytest.raises(AssertionError):
        slots.apply(delta(given=[given]))


def test_a_token_drawn_past_the_longest_request_stays_in_its_own_row(
    slots: Slots,
) -> None:
    last = SHAPE.max_tokens - 1
    slots.write_drawn(
        np.array([1], np.int32),
        np.array([last], np.int32),
        torch.tensor([9], dtype=torch.int32),
    )
    assert slots.tokens[1, last] == 9 and slots.tokens.count_nonzero() == 1


def test_a_released_slot_no_longer_wants_prompt_logprobs(slots: Slots) -> None:
    rows = np.array([2, 1, 2], np.int32)
    slots.apply(delta(admissions=(admission(2, [1, 2], prompt_logprobs=0), admission(1, [3]))))
    assert slots.wants_prompt_logprobs(rows).tolist() == [True, False, True]
    slots.apply(delta(releases=[2], admissions=(admission(2, [4]),)))
    assert not slots.wants_prompt_logprobs(rows).any()


def test_prompt_logprobs_of_minus_one_mean_the_whole_vocabulary(slots: Slots) -> None:
    slots.apply(delta(admissions=(admission(2, [1, 2], prompt_logprobs=-1),)))
    assert slots.prompt_logprobs_np[2] == SHAPE.vocab_size
