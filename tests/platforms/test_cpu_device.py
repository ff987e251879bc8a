"""Host memory as a device: limits of the container, transfers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from vllm.platforms import platform_of
from vllm.platforms.cpu.device import CpuDevice, read_memory

KIB = 1024
GIB = 1024**3


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.fixture
def proc(tmp_path):
    return write(
        tmp_path / "proc",
        {
            "meminfo": f"MemTotal: {16 * GIB // KIB} kB\nMemAvailable: {12 * GIB // KIB} kB\n",
            "self/status": f"Name: x\nVmRSS:\t {GIB // KIB} kB\n",
            "self/cgroup": "0::/\n",
        },
    )


def test_memory_without_limits_is_that_of_the_machine(proc, tmp_path):
    memory = read_memory(proc, tmp_path / "none")
    assert (memory.total_bytes, memory.free_bytes) == (16 * GIB, 12 * GIB)
    assert memory.reserved_bytes == GIB


def test_limit_of_version_2_counts_page_cache_as_free(proc, tmp_path):
    cgroup = write(
        tmp_path / "cg",
        {
            "memory.max": f"{4 * GIB}\n",
            "memory.current": f"{3 * GIB}\n",
            "memory.stat": f"anon 1\ninactive_file {GIB}\n",
        },
    )
    memory = read_memory(proc, cgroup)
    assert (memory.total_bytes, memory.free_bytes) == (4 * GIB, 2 * GIB)


def test_tightest_limit_of_nested_groups_counts(proc, tmp_path):
    write(proc, {"self/cgroup": "0::/outer/inner\n"})
    stat = {"memory.stat": "inactive_file 0\n"}
    cgroup = tmp_path / "cg"
    for group, limit, used in (("outer", f"{3 * GIB}", GIB), ("outer/inner", "max", 5)):
        write(
            cgroup / group,
            {"memory.max": f"{limit}\n", "memory.current": f"{used}\n", **stat},
        )
    memory = read_memory(proc, cgroup)
    assert (memory.total_bytes, memory.free_bytes) == (3 * GIB, 2 * GIB)


def test_limit_of_version_1_is_honoured_even_where_the_path_is_the_hosts(proc, tmp_path):
    write(proc, {"self/cgroup": "5:cpu:/x\n4:memory:/docker/0123\n"})
    cgroup = write(
        tmp_path / "cg" / "memory",
        {
            "memory.limit_in_bytes": f"{2 * GIB}\n",
            "memory.usage_in_bytes": f"{GIB}\n",
            "memory.stat": f"total_inactive_file {GIB // 2}\n",
        },
    ).parent
    memory = read_memory(proc, cgroup)
    assert (memory.total_bytes, memory.free_bytes) == (2 * GIB, 3 * GIB // 2)


def test_memory_of_this_machine_is_plausible():
    memory = platform_of("cpu").device(0).memory()
    assert 0 < memory.reserved_bytes < memory.total_bytes
    assert 0 < memory.free_bytes <= memory.total_bytes


def test_upload_shares_memory_unless_the_array_is_read_only():
    array = np.arange(4, dtype=np.int32)
    tensor = CpuDevice().upload(array)
    array[0] = 9
    assert tensor.tolist() == [9, 1, 2, 3]
    array.flags.writeable = False
    copy = CpuDevice().upload(array)
    copy[0] = 5
    assert array[0] == 9


def test_put_writes_rows_where_the_index_says():
    out = torch.zeros(5, 2, dtype=torch.int32)
    CpuDevice().put(out, np.array([3, 1]), np.array([[1, 2], [3, 4]], np.int32))
    assert out.tolist() == [[0, 0], [3, 4], [0, 0], [1, 2], [0, 0]]


def test_download_is_not_changed_by_later_writes():
    tensor = torch.tensor([1, 2, 3])
    copy = CpuDevice().download(tensor)
    tensor.zero_()
    assert copy.wait().tolist() == [1, 2, 3]


def test_zeroed_memory_is_aligned_and_taken_only_when_written() -> None:
    device = CpuDevice()
    before = device.memory().reserved_bytes
    memory = device.zeros(1 << 30, torch.uint8)
    assert memory.data_ptr() % 64 == 0
    assert memory.shape == (1 << 30,)
    assert device.memory().reserved_bytes - before < 1 << 28
    memory[: 1 << 20] = 1
    assert int(memory[: 1 << 21].sum(dtype=torch.int64)) == 1 << 20


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux")
def test_zeroed_memory_is_private_which_large_pages_need() -> None:
    memory = CpuDevice().zeros(1 << 20, torch.uint8)
    for line in Path("/proc/self/maps").read_text().splitlines():
        begin, end = (int(bound, 16) for bound in line.split()[0].split("-"))
        if begin <= memory.data_ptr() < end:
            assert line.split()[1] == "rw-p"
            return
    pytest.fail("the memory is not mapped")
