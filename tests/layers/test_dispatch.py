"""Ways in which tokens reach experts of other ranks; ranks are threads."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from tests.models.ranks import InThread, Meeting, on_ranks
from vllm.device.agreement import AgreedTokens
from vllm.expert_variables import BY_SHAPE, EXCHANGE, GATHER
from vllm.layers import dispatch
from vllm.layers.dispatch import Dispatch, ExpertRanks, make_dispatch, spares_enough
from vllm.layers.expert_shard import NOT_HERE, ExpertShard
from vllm.layers.shapes import ShardInfo
from vllm.ops.moe import moe

HIDDEN, WIDTH, EXPERTS, TOP_K = 24, 16, 13, 3
NO_EXPERT = EXPERTS
W13 = torch.randn(EXPERTS, 2 * WIDTH, HIDDEN, generator=torch.Generator().manual_seed(1)) / 5
W2 = torch.randn(EXPERTS, HIDDEN, WIDTH, generator=torch.Generator().manual_seed(2)) / 5


class Counting(InThread):
    """Counts the rows that it sends to others."""

    def __init__(self, rank: InThread) -> None:
        super().__init__(rank.rank, rank._meeting)
        self.sent: list[list[int]] = []  # of each exchange, by rank

    def exchange(self, x: Tensor, sent: Sequence[int], received: Sequence[int]) -> Tensor:
        self.sent.append(list(sent))
        return super().exchange(x, sent, received)


class OwnShare:
    """The experts of a rank."""

    def __init__(self, shard: ExpertShard) -> None:
        self.owned = list(shard.owned)
        self.local_ids = torch.tensor((*shard.local_ids, NOT_HERE))

    def through_experts(self, x: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
        local = self.local_ids[ids.long()]
        return moe(x, W13[self.owned], W2[self.owned], local, weights, "silu")

    def row_by_row(self, x: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
        """What no other row can change to the bit."""
        is_here = self.local_ids[ids.long()] != NOT_HERE
        scale = (weights * (ids + 1) * is_here).sum(1, keepdim=True)
        return (x.float() * scale).to(x.dtype)


def shard_of(rank: int, size: int, placement: str) -> ExpertShard:
    return ExpertShard.of_whole_experts(EXPERTS, ShardInfo(rank, size), placement)


def choices(num_tokens: int, seed: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """x [T, H], weights and ids [T, k]."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num_tokens, HIDDEN, generator=generator).to(dtype)
    scores = torch.rand(num_tokens, EXPERTS, generator=generator)
    weights, ids = scores.topk(TOP_K, dim=1)
    return x, weights, ids


def made(rank: InThread, way: str, tokens: AgreedTokens, placement: str) -> Dispatch:
    shard = shard_of(rank.rank, rank.size, placement)
    return make_dispatch(way, ExpertRanks(rank, tokens), 1, shard, static_shapes=False)


def run(
    way: str,
    counts: Sequence[int],
    dtype: torch.dtype = torch.float32,
    function: str = "through_experts",
    placement: str = "linear",
    tokens: AgreedTokens | None = None,
) -> list[tuple[Tensor, Counting]]:
    """What each rank gets for its counts[rank] tokens, and the rank."""
    tokens = tokens or AgreedTokens(max(counts))

    def of_rank(rank: InThread) -> tuple[Tensor, Counting]:
        counting = Counting(rank)
        share = OwnShare(shard_of(rank.rank, rank.size, placement))
        x, weights, ids = choices(counts[rank.rank], rank.rank, dtype)
        send = made(counting, way, tokens, placement)
        results = [send(getattr(share, function), x, weights, ids) for _ in range(2)]
        assert torch.equal(*results), "owners are asked for once"
        return results[0], counting

    return on_ranks(len(counts), of_rank)  # type: ignore[return-value]


COUNTS = [(5, 5), (7, 0), (0, 9, 2, 30)]


@pytest.mark.parametrize("placement", ["linear", "round_robin"])
@pytest.mark.parametrize("way", [GATHER, EXCHANGE])
@pytest.mark.parametrize("counts", COUNTS, ids=str)
def test_every_way_gives_what_one_rank_with_all_experts_does(
    way: str, counts: tuple[int, ...], placement: str
) -> None:
    for rank, (found, _) in enumerate(run(way, counts, placement=placement)):
        x, weights, ids = choices(counts[rank], rank)
        torch.testing.assert_close(found, moe(x, W13, W2, ids, weights, "silu"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("counts", COUNTS, ids=str)
def test_both_ways_give_the_same_bits(counts: tuple[int, ...], dtype: torch.dtype) -> None:
    gathered, exchanged = (run(way, counts, dtype, "row_by_row") for way in (GATHER, EXCHANGE))
    for (one, _), (other, _) in zip(gathered, exchanged, strict=True):
        assert one.dtype == other.dtype == dtype
        assert torch.equal(one, other)


def test_a_token_does_not_depend_on_others() -> None:
    """Tokens of rank 0 are the same whatever others bring."""
    few, many = (
        run(EXCHANGE, (4, others, others), torch.bfloat16, "row_by_row") for others in (1, 50)
    )
    assert torch.equal(few[0][0], many[0][0])


def test_a_token_goes_to_the_ranks_of_its_choice_once() -> None:
    counts = (6, 40, 11, 0)
    shards = [shard_of(rank, 4, "linear") for rank in range(4)]
    results = run(EXCHANGE, counts)
    for rank, (_, counting) in enumerate(results):
        _, _, ids = choices(counts[rank], rank)
        wanted = [sum(bool({*row} & {*shard.owned}) for row in ids.tolist()) for shard in shards]
        there, choices_there, back = counting.sent[:3]
        assert there == choices_there == wanted
        assert back == [other.sent[0][rank] for _, other in results]
    assert all(not counting.sent for _, counting in run(GATHER, counts))


def test_rows_that_are_no_tokens_go_nowhere() -> None:
    def of_rank(rank: InThread) -> tuple[Tensor, list[list[int]]]:
        counting = Counting(rank)
        x, weights, ids = choices(4, rank.rank)
        ids[2:] = NO_EXPERT
        send = made(counting, EXCHANGE, AgreedTokens(4), "linear")
        share = OwnShare(shard_of(rank.rank, rank.size, "linear"))
        return send(share.through_experts, x, weights, ids), counting.sent

    for found, sent in on_ranks(2, of_rank):  # type: ignore[misc]
        assert found[:2].any() and not found[2:].any()
        assert sum(sent[0]) <= 4


@pytest.mark.parametrize(
    ("rows", "tokens", "is_exchanged"),
    [
        (300, AgreedTokens(300), True),
        (300, AgreedTokens(300, is_decode=True), False),  # may be captured
        (300, AgreedTokens(0), False),  # in warm-up
        (20, AgreedTokens(20), False),  # few
        (20, AgreedTokens(300), True),  # another rank has many
    ],
)
def test_the_shape_decides(
    rows: int, tokens: AgreedTokens, is_exchanged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = [rows] * 5
    if tokens.count > rows:
        counts[3] = tokens.count
    for found, counting in run(BY_SHAPE, counts, tokens=tokens):
        assert bool(counting.sent) == is_exchanged
        assert found.any()


@pytest.mark.parametrize(
    ("rows", "ranks", "top_k", "said"),
    [
        (10_000, 2, 8, False),  # every rank needs nearly all
        (10_000, 12, 8, False),
        (10_000, 13, 8, True),
        (10_000, 3, 2, False),
        (10_000, 4, 2, True),
        (151, 4, 2, False),
        (152, 4, 2, True),  # 3 x 152 x (3 / 4)^2 = 256.5
        (0, 64, 1, False),
    ],
)
def test_an_exchange_must_spare_half_and_enough(
    rows: int, ranks: int, top_k: int, said: bool
) -> None:
    assert spares_enough(rows, ranks, top_k) is said


def test_devices_with_static_shapes_gather_and_say_why(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("vllm"), "propagate", True)
    experts = ExpertRanks(InThread(0, Meeting(1)), AgreedTokens())
    shard = shard_of(0, 1, "linear")
    for way in (GATHER, BY_SHAPE, EXCHANGE):
        assert "shapes that are known before" not in caplog.text
        found = make_dispatch(way, experts, 1, shard, static_shapes=True)
        assert isinstance(found, dispatch.GatherTokens)
    assert "shapes that are known before" in caplog.text
