"""Collectives of two processes, each with a module of its own. A program, not a set of tests."""

from __future__ import annotations

import os

import habana_frameworks.torch as htorch
import torch
import torch.distributed as dist
from habana_frameworks.torch.distributed.hccl import initialize_distributed_hpu
from torch import Tensor

world, rank, local = initialize_distributed_hpu()
other = 1 - rank


def tensor(*values: float, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.tensor(values, dtype=dtype).to("hpu")


def expect(got: Tensor, *values: float) -> None:
    assert got.device.type == "hpu"
    assert got.cpu().tolist() == list(values), (rank, got.cpu(), values)


def check_reductions() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.int64):
        x = tensor(1 + rank, 2, dtype=dtype)
        dist.all_reduce(x)
        expect(x, 3, 4)
    x = tensor(1.0 + rank)
    dist.all_reduce(x, op=dist.ReduceOp.MAX, async_op=True).wait()
    expect(x, 2)
    part = torch.zeros(2).to("hpu")
    dist.reduce_scatter_tensor(part, tensor(1, 2, 3, 4))
    expect(part, *((2, 4), (6, 8))[rank])
    part = torch.zeros(1).to("hpu")
    dist.reduce_scatter(part, [tensor(5), tensor(7)])
    expect(part, (10, 14)[rank])


def check_gathers_and_exchanges() -> None:
    whole = torch.zeros(4).to("hpu")
    dist.all_gather_into_tensor(whole, tensor(rank, rank + 10))
    expect(whole, 0, 10, 1, 11)
    parts = [torch.zeros(1).to("hpu") for _ in range(2)]
    dist.all_gather(parts, tensor(rank))
    expect(torch.cat(parts), 0, 1)
    x = tensor(rank + 5)
    dist.broadcast(x, 1)
    expect(x, 6)
    exchanged = torch.zeros(2).to("hpu")
    dist.all_to_all_single(exchanged, tensor(rank * 10, rank * 10 + 1))
    expect(exchanged, rank, 10 + rank)
    got = [torch.zeros(1 + (rank != i)).to("hpu") for i in range(2)]
    dist.all_to_all(got, [tensor(1), tensor(2, 3)] if rank == 0 else [tensor(4, 5), tensor(6)])
    expect(torch.cat(got), *((1, 4, 5), (2, 3, 6))[rank])


def check_pairs() -> None:
    large, got = torch.full((1 << 18,), float(rank)).to("hpu"), torch.zeros(1 << 18).to("hpu")
    for work in [dist.isend(large, other), dist.irecv(got, other)]:
        work.wait()
    expect(got[:2], other, other)
    if rank == 0:
        dist.send(tensor(42), 1)
    else:
        x = tensor(0)
        dist.recv(x, 0)
        expect(x, 42)


def check_groups() -> None:
    dist.barrier()
    x = tensor(1)
    dist.all_reduce(x, group=dist.new_group([0, 1]))
    expect(x, 2)
    y = torch.ones(1)
    dist.all_reduce(y, group=dist.new_group([0, 1], backend="gloo"))
    assert y.item() == 2
    objects: list[object] = [None, None]
    dist.all_gather_object(objects, {"rank": rank})
    assert objects == [{"rank": 0}, {"rank": 1}]
    assert dist.get_backend() == "hccl"


def program(x: Tensor) -> Tensor:
    y = x * 2
    htorch.core.mark_step()
    dist.all_reduce(y)
    return y + 1


@torch.no_grad()
def check_graphs() -> None:
    graphed = torch.hpu.wrap_in_hpu_graph_func(program, disable_tensor_cache=True)
    if os.environ["PT_HPU_ENABLE_LAZY_COLLECTIVES"] == "true":
        for step in range(3):
            expect(graphed(tensor(rank + step)), 2 * (1 + 2 * step) + 1)
        return
    try:
        graphed(tensor(rank))
    except RuntimeError as error:
        assert "collective nonSFG is not supported during hpu graph capturing" in str(error)
    else:
        raise AssertionError("captured")


if __name__ == "__main__":
    assert (world, local, os.environ["HLS_MODULE_ID"]) == (2, rank, str(rank))
    dist.init_process_group("hccl", rank=rank, world_size=world)
    for check in (check_reductions, check_gathers_and_exchanges, check_pairs, check_groups):
        check()
    if htorch.utils.internal.is_lazy():
        check_graphs()
    dist.barrier()
    dist.destroy_process_group()
