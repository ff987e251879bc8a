"""A device with 64 MiB. Run in a lazy process with HPU_EMULATOR_MEMORY=64MiB."""

from __future__ import annotations

import habana_frameworks.torch.core as htcore
import pytest
import torch
from hpu_emulator import _C

HPU = torch.device("hpu")
MIB = 1 << 20


def empty(mib: int) -> torch.Tensor:
    return torch.empty(mib * MIB, dtype=torch.uint8, device=HPU)


def test_the_limit_is_what_was_asked_for():
    assert torch.hpu.mem_get_info()[1] == 64 * MIB


def test_a_workspace_stays_and_is_shared_by_recipes():
    htcore.mark_step()
    start = torch.hpu.memory_allocated()
    x = torch.ones(MIB, device=HPU)  # 4 MiB
    htcore.mark_step()
    y = (x + 1) * 2
    htcore.mark_step()
    first = torch.hpu.memory_allocated()
    assert first - start == 3 * 4 * MIB  # x, y and the workspace for x + 1
    z = (x + 3) * 4
    htcore.mark_step()
    assert torch.hpu.memory_allocated() - first == 4 * MIB  # z
    del x, y, z
    htcore.mark_step()
    assert torch.hpu.memory_allocated() - start == 4 * MIB


def test_what_is_uploaded_is_no_workspace():
    htcore.mark_step()
    before = torch.hpu.memory_stats()["InUse"]
    for _ in range(8):
        torch.ones(MIB).to(HPU)
    x = torch.ones(3).to(HPU) + 1
    htcore.mark_step()
    assert torch.hpu.memory_allocated() - before < MIB
    del x


def test_running_out_says_how_much_was_asked_for_and_leaves_the_device_usable():
    kept = empty(40)
    message = rf"Allocation failed for size::{30 * MIB} \(30\)MB"
    with pytest.raises(RuntimeError, match=message):
        empty(30)
    again = empty(20)
    del kept, again
    empty(60)


def test_a_graph_is_charged_until_it_is_given_back():
    _C.charge_graph_memory(0, 50 * MIB)
    with pytest.raises(RuntimeError, match="PT_DEVMEM"):
        empty(30)
    with pytest.raises(RuntimeError, match="PT_DEVMEM"):
        _C.charge_graph_memory(0, 30 * MIB)
    _C.charge_graph_memory(0, -50 * MIB)
    empty(30)


def test_results_of_the_host_count_too():
    kept = empty(50)
    x = torch.ones(MIB, device=HPU)
    with pytest.raises(RuntimeError, match="PT_DEVMEM"):
        torch.cat([x] * 4)
    del kept, x
