"""Indices outside of their dimension. Run in a process that has the emulated device."""

from __future__ import annotations

import habana_frameworks.torch  # noqa: F401 - registers the device
import pytest
import torch
from hpu_emulator import strict, syncs
from hpu_emulator.errors import IndexRangeError
from torch import Tensor

HPU = torch.device("hpu")
TABLE = torch.arange(12.0).view(4, 3) + 1
INDICES = torch.tensor([1, -1, 3, 4, 2**30])


def reads(table: Tensor, index: Tensor) -> dict[str, Tensor]:
    wide = index[:, None].expand(-1, 3)
    return {
        "index_select": table.index_select(0, index),
        "embedding": torch.nn.functional.embedding(index, table),
        "gather": table.gather(0, wide.contiguous()),
        "index": table[index],
        "index, second dimension": table.t()[:, index].t(),
    }


def test_reads_outside_give_zeros():
    expected = torch.zeros(5, 3)
    expected[0], expected[2] = TABLE[1], TABLE[3]
    for name, found in reads(TABLE.to(HPU), INDICES.to(HPU)).items():
        torch.testing.assert_close(found.cpu(), expected, msg=name)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_reads_inside_are_as_on_the_host(dtype):
    index = torch.tensor([3, 0, 0, 2], dtype=dtype)
    found = TABLE.to(HPU).index_select(0, index.to(HPU)).cpu()
    assert torch.equal(found, TABLE.index_select(0, index))


def write(kind: str, table: Tensor, index: Tensor, rows: Tensor) -> Tensor:
    if kind == "index_copy_":
        return table.index_copy_(0, index, rows)
    if kind == "index_add_":
        return table.index_add_(0, index, rows)
    if kind == "index_reduce_":
        return table.index_reduce_(0, index, rows, "amax")
    if kind == "index_fill_":
        return table.index_fill_(0, index, 7.0)
    if kind == "index_put_":
        return table.index_put_((index,), rows)
    wide = index[:, None].expand(-1, 3).contiguous()
    if kind == "scatter_add_":
        return table.scatter_add_(0, wide, rows)
    if kind == "scatter":
        return table.copy_(table.scatter(0, wide, rows))
    return table.scatter_(0, wide, rows)


WRITES = (
    "index_copy_ index_add_ index_reduce_ index_fill_ index_put_ scatter_ scatter scatter_add_"
).split()


@pytest.mark.parametrize("kind", WRITES)
def test_writes_outside_are_ignored(kind):
    rows = torch.arange(15.0).view(5, 3) * 10
    inside = [0, 2]
    expected = write(kind, TABLE.clone(), INDICES[inside], rows[inside])
    table = TABLE.to(HPU)
    found = write(kind, table, INDICES.to(HPU), rows.to(HPU))
    assert torch.equal(found.cpu(), expected)
    assert torch.equal(table.cpu(), expected)


@pytest.mark.parametrize("kind", WRITES)
def test_writes_of_nothing_but_padding_change_nothing(kind):
    table = TABLE.to(HPU)
    write(kind, table, torch.full((2,), -1).to(HPU), torch.ones(2, 3).to(HPU))
    assert torch.equal(table.cpu(), TABLE)


def test_one_hot_of_minus_one_is_a_row_of_zeros_without_a_host_read():
    before = syncs.count()
    found = torch.nn.functional.one_hot(torch.tensor([1, -1, 3, 9]).to(HPU), num_classes=4)
    assert syncs.count() == before
    assert found.cpu().tolist() == [[0, 1, 0, 0], [0] * 4, [0, 0, 0, 1], [0] * 4]


@pytest.mark.parametrize("kind", WRITES)
def test_the_strict_switch_raises_for_what_is_outside_and_only_for_that(kind):
    rows = torch.ones(1, 3).to(HPU)
    with strict.checked_indices():
        write(kind, TABLE.to(HPU), torch.tensor([3]).to(HPU), rows)
        with pytest.raises(IndexRangeError, match="index 4 is out of range for a dimension of 4"):
            write(kind, TABLE.to(HPU), torch.tensor([4]).to(HPU), rows)
        with pytest.raises(IndexRangeError, match="index -1"):
            TABLE.to(HPU)[torch.tensor([-1]).to(HPU)]


def test_python_integers_still_count_from_the_end():
    assert TABLE.to(HPU)[-1].tolist() == TABLE[-1].tolist()
