from __future__ import annotations

import pickle

import pytest

from vllm.distributed.groups import SINGLE, Group
from vllm.distributed.place import ALONE, Place, SpreadExperts, make_places


def test_places_of_tensor_parallel_ranks_share_one_group_and_have_one_driver() -> None:
    places = make_places(4)
    assert [(p.rank, p.local_rank, p.world_size) for p in places] == [(i, i, 4) for i in range(4)]
    assert [p.tp for p in places] == [Group(i, 4) for i in range(4)]
    assert all(group == SINGLE for p in places for group in (p.pp, p.dp))
    assert all(p.ep == p.tp and p.everyone == p.tp and not p.spreads_experts for p in places)
    assert [p.is_driver for p in places] == [True, False, False, False]


def test_places_are_numbered_stage_after_stage() -> None:
    places = make_places(2, 3)
    assert [(p.rank, p.local_rank, p.world_size) for p in places] == [(i, i, 6) for i in range(6)]
    assert [(p.pp.rank, p.tp.rank) for p in places] == [
        (stage, share) for stage in range(3) for share in range(2)
    ]
    assert all((p.pp.size, p.tp.size) == (3, 2) for p in places)
    assert all(p.dp == SINGLE and p.ep == p.tp for p in places)
    assert [p.rank for p in places if p.is_driver] == [4]


def test_copies_that_share_experts_are_one_world() -> None:
    memory = ("first", "second")  # by stage
    copies = [
        make_places(2, 2, 1, copy, 3, SpreadExperts(Group(copy, 3), "meeting", memory))
        for copy in range(3)
    ]
    everyone = [place for places in copies for place in places]
    assert [p.everyone for p in everyone] == [Group(i, 12) for i in range(12)]
    assert {p.rendezvous for p in everyone} == {"meeting"}
    for stage in range(2):
        ranks = [p for p in everyone if p.pp.rank == stage]
        assert [p.ep for p in ranks] == [Group(i, 6) for i in range(6)]
        assert {p.experts_memory for p in ranks} == {memory[stage]}
    assert not everyone[0].shares_memory, "the ranks of a copy have none yet"


def test_nodes_have_as_many_consecutive_ranks() -> None:
    places = make_places(2, 4, num_nodes=2)
    assert [(p.node, p.local_rank) for p in places] == [(n, i) for n in range(2) for i in range(4)]
    assert [p.pp.rank for p in places if p.node == 1] == [2, 2, 3, 3]
    assert [p.rank for p in places if p.is_driver] == [6]


def test_the_only_rank_stands_alone_and_is_the_driver() -> None:
    assert make_places(1) == [ALONE] and ALONE.is_driver


def test_the_driver_of_a_pipeline_is_in_its_last_stage() -> None:
    stages = [Place(rank, 2, rank, pp=Group(rank, 2)) for rank in range(2)]
    assert [place.is_driver for place in stages] == [False, True]


def test_a_place_survives_the_way_to_another_process() -> None:
    place = Place(1, 2, 0, tp=Group(1, 2), rendezvous="10.0.0.1:29550")
    assert pickle.loads(pickle.dumps(place)) == place


def test_a_place_outside_its_world_is_refused() -> None:
    for wrong in (lambda: Group(2, 2), lambda: Place(2, 2, 0), lambda: Place(0, 2, 0)):
        with pytest.raises(AssertionError):
            wrong()
