from __future__ import annotations

import pytest

from vllm.distributed.groups import SINGLE, Group
from vllm.distributed.stages import PARTITION, Stage, divide, stage_of
from vllm.errors import ConfigError


@pytest.mark.parametrize(
    ("num_layers", "num_stages", "counts"),
    [
        (61, 4, [15, 15, 16, 15]),
        (62, 4, [15, 16, 16, 15]),
        (63, 4, [16, 16, 16, 15]),
        (64, 4, [16, 16, 16, 16]),
        (3, 2, [2, 1]),
        (4, 3, [1, 2, 1]),
        (3, 3, [1, 1, 1]),
        (7, 1, [7]),
    ],
)
def test_stages_before_the_last_take_the_rest(
    num_layers: int, num_stages: int, counts: list[int]
) -> None:
    assert divide(num_layers, num_stages) == counts


def test_more_stages_than_layers_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"size 4: the model has 3 layers.*Use at most 3\.$"):
        divide(3, 4)


def test_a_partition_decides() -> None:
    assert divide(6, 3, "1,4, 1") == [1, 4, 1]
    assert divide(6, 3, " 3 ,2,1") == [3, 2, 1]


@pytest.mark.parametrize(
    ("partition", "message"),
    [
        ("3,3", r"'3,3' has 2 numbers for --pipeline-parallel-size 3\. Give one per stage"),
        ("1,1,1,3", r"has 4 numbers for --pipeline-parallel-size 3"),
        ("2,2,3", r"adds up to 7, and the model has 6 layers\. Correct it or unset it"),
        ("1,2,x", r"'1,2,x': must be numbers of layers"),
        ("1,2,", r"must be numbers of layers"),
        ("-1,3,4", r"must be numbers of layers"),
        ("1.5,1.5,3", r"must be numbers of layers"),
        ("0,3,3", r"must be numbers of layers, each at least 1"),
    ],
)
def test_a_partition_that_does_not_fit_is_refused(partition: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{PARTITION}=.*{message}"):
        divide(6, 3, partition)


def test_a_rank_has_the_layers_of_its_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [stage_of(61, Group(rank, 4)) for rank in range(4)] == [
        Stage(0, 15, is_first=True, is_last=False),
        Stage(15, 30, is_first=False, is_last=False),
        Stage(30, 46, is_first=False, is_last=False),
        Stage(46, 61, is_first=False, is_last=True),
    ]
    monkeypatch.setenv(PARTITION, "2,1")
    assert [[*stage_of(3, Group(rank, 2)).layers] for rank in range(2)] == [[0, 1], [2]]


def test_a_partition_counts_only_where_there_are_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PARTITION, "2,1")
    assert stage_of(8, SINGLE) == Stage(0, 8, is_first=True, is_last=True)
