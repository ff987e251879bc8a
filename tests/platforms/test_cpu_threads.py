"""Which cores and how many threads a worker gets."""

from __future__ import annotations

import pytest

from vllm.errors import ConfigError
from vllm.platforms.cpu import threads
from vllm.platforms.cpu.threads import ThreadPlan, cpu_quota, parse_cpu_list, physical_cores


@pytest.fixture
def machine(monkeypatch):
    """Eight cores of one thread each, no quota."""
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(threads, "physical_cores", lambda cpus, _: list(cpus))
    monkeypatch.setattr(threads, "cpu_quota", lambda _: 1 << 20)


def test_one_rank_uses_all_cores_without_pinning(machine):
    assert threads.plan_threads("auto", 0, 1, 8) == ThreadPlan((), 8)


def test_ranks_share_the_cores_evenly_and_apart(machine):
    plans = [threads.plan_threads("auto", rank, 3, 8) for rank in range(3)]
    assert [plan.cpus for plan in plans] == [(0, 1), (2, 3), (4, 5)]
    assert {plan.num_threads for plan in plans} == {2}


def test_more_ranks_than_cores_get_one_thread_each(machine):
    assert threads.plan_threads("auto", 9, 16, 8) == ThreadPlan((), 1)


def test_quota_of_the_container_bounds_threads(machine, monkeypatch):
    monkeypatch.setattr(threads, "cpu_quota", lambda _: 3)
    assert threads.plan_threads("auto", 0, 1, 8).num_threads == 3


def test_omp_num_threads_bounds_threads(machine):
    assert threads.plan_threads("auto", 0, 1, 2).num_threads == 2


def test_nobind_leaves_everything_alone(machine):
    assert threads.plan_threads("nobind", 0, 2, 5) == ThreadPlan((), 5)


def test_lists_pin_each_rank(machine):
    assert threads.plan_threads("0-2|4,6", 1, 2, 8) == ThreadPlan((4, 6), 2)


@pytest.mark.parametrize(
    ("bind", "message"),
    [
        ("0-1", "lists CPUs for 1 ranks, but there are 2"),
        ("0-1|7-9", r"names CPUs \[8, 9\]"),
        ("0-1|all", "'all' is no CPU or range"),
        ("0-1|", "'' is no CPU or range"),
    ],
)
def test_wrong_lists_are_refused(machine, bind, message):
    with pytest.raises(ConfigError, match=message):
        threads.plan_threads(bind, 1, 2, 8)


def test_cpu_list_is_read_as_the_kernel_writes_it():
    assert parse_cpu_list("0-2, 5,2") == (0, 1, 2, 5)


def test_one_thread_of_each_physical_core(tmp_path):
    for cpu, siblings in ((0, "0,2"), (1, "1,3"), (2, "0,2"), (3, "1,3")):
        topology = tmp_path / f"cpu{cpu}" / "topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text(siblings)
    assert physical_cores([0, 1, 2, 3, 4], tmp_path) == [0, 1, 4]


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"cpu.max": "250000 100000"}, 2),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "max 100000"}, 1 << 20),
        ({"cpu/cpu.cfs_quota_us": "400000", "cpu/cpu.cfs_period_us": "100000"}, 4),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 1 << 20),
        ({}, 1 << 20),
    ],
)
def test_quota_of_either_cgroup_version(tmp_path, files, quota):
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert cpu_quota(tmp_path) == quota
