"""Which modules ranks get, and that two engines never get the same one."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.limits import wait_until
from vllm.distributed.groups import Group
from vllm.distributed.place import Place
from vllm.errors import ConfigError
from vllm.platforms.hpu import bridge, modules
from vllm.platforms.hpu.modules import (
    ModuleLocks,
    OwnModule,
    acquire,
    choose,
    chosen_module,
    set_aside,
    visible_modules,
)

BOX = list(range(8))


@pytest.fixture(autouse=True)
def locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of the locks; this process has no module and asks for none."""
    directory = tmp_path / "locks"
    monkeypatch.setenv("VLLM_HPU_MODULE_LOCKS", str(directory))
    monkeypatch.delenv("HLS_MODULE_ID", raising=False)
    monkeypatch.setattr(modules, "OWN", OwnModule())
    return directory


@pytest.fixture
def engines() -> Iterator[ExitStack]:
    """Leaves the modules that a test has set aside."""
    with ExitStack() as stack:
        yield stack


def start(engines: ExitStack, num_ranks: int, visible: list[int] = BOX) -> list[int]:
    return engines.enter_context(set_aside(range(num_ranks), visible, is_in_process=False))


@pytest.mark.parametrize(
    ("num_ranks", "visible", "busy", "expected"),
    [
        (1, BOX, [], [0]),
        (1, BOX, [0], [1]),  # rather than one of a pair that is whole
        (1, BOX, [0, 1], [2]),  # rather than one of four that are free
        (2, BOX, [], [0, 1]),
        (2, BOX, [1], [2, 3]),
        (2, [3, 2, 0], [], [3, 2]),
        (4, BOX, [2], [4, 5, 6, 7]),
        (8, BOX, [], BOX),
        (3, BOX, [], [0, 1, 2]),
        (2, [1, 2], [], [1, 2]),
        (4, BOX, [0, 5], [1, 2, 3, 4]),
        (2, [0, 1, 2, 3, 6, 7], [], [6, 7]),  # 4 and 5 are not visible: no four are broken
    ],
)
def test_ranks_get_free_modules_that_are_joined(
    num_ranks: int, visible: list[int], busy: list[int], expected: list[int]
) -> None:
    free = [module for module in visible if module not in busy]
    assert choose(num_ranks, visible, free) == expected


@pytest.mark.parametrize(
    ("num_ranks", "visible", "warning"),
    [
        (2, BOX, None),
        (4, [4, 5, 6, 7], None),
        (1, [5], None),
        (3, BOX, "3 ranks: no modules of a box are joined for a group of this size"),
        (2, [1, 2], "2 ranks: no joined group of modules is visible and free"),
    ],
)
def test_a_group_without_wiring_is_warned_of(
    engines: ExitStack,
    caplog: pytest.LogCaptureFixture,
    num_ranks: int,
    visible: list[int],
    warning: str | None,
) -> None:
    with caplog.at_level(logging.INFO, "vllm"):
        chosen = start(engines, num_ranks, visible)
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [line[: len(warning or "")] for line in said] == ([warning] if warning else [])
    told = ", ".join(f"rank {rank} on module {module}" for rank, module in enumerate(chosen))
    assert f"Modules: {told}" in caplog.text


def test_ranks_of_another_node_are_named_by_their_numbers(
    engines: ExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "vllm"):
        engines.enter_context(set_aside([2, 3], BOX, is_in_process=False))
    assert "Modules: rank 2 on module 0, rank 3 on module 1" in caplog.text


def test_engines_get_modules_of_their_own_until_they_end(engines: ExitStack) -> None:
    assert start(engines, 2) == [0, 1]
    with ExitStack() as second:
        assert start(second, 2) == [2, 3]
        assert start(engines, 4) == [4, 5, 6, 7]
        with pytest.raises(ConfigError) as caught:
            start(engines, 1)
        assert "0 of 8 are free: other engines have modules 0, 1, 2, 3, 4, 5, 6, 7" in str(
            caught.value
        )
    assert start(engines, 1) == [2]


def test_too_few_modules_are_an_error_with_both_numbers(engines: ExitStack) -> None:
    with pytest.raises(ConfigError, match=r"4 ranks: .*, and 2 are visible \(6, 7\)"):
        start(engines, 4, [6, 7])
    start(engines, 2)
    with pytest.raises(ConfigError, match=r"2 ranks: .* 1 of 3 are free: .* modules 0, 1 \(locked"):
        start(engines, 2, [0, 1, 2])
    assert start(engines, 1, [0, 1, 2]) == [2], "an engine that did not start holds nothing"


HOLDER = """
import sys
from vllm.platforms.hpu.modules import set_aside
with set_aside(range(2), range(8), is_in_process=False) as chosen:
    print(chosen, flush=True)
    sys.stdin.read()
"""


def test_locks_vanish_with_the_process_that_has_them(engines: ExitStack) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "[0, 1]\n"
        assert start(engines, 1) == [2]
        process.kill()
        process.wait()
    assert start(engines, 2) == [0, 1]


def test_an_engine_waits_while_another_chooses(engines: ExitStack, locks: Path) -> None:
    with ModuleLocks.of_machine().choosing():
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        wait_until(lambda: _waits_for(locks / "choosing.lock", process.pid), "its wait")
        held = ModuleLocks(locks).take([0])
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "[2, 3]\n"
        process.communicate("")
    modules.release(held)


def _waits_for(path: Path, pid: int) -> bool:
    inode = f":{path.stat().st_ino} "
    lines = Path("/proc/locks").read_text(encoding="ascii").splitlines()
    return any("->" in line and f" {pid} " in line and inode in line for line in lines)


def test_a_directory_that_cannot_be_used_is_a_warning(
    engines: ExitStack, locks: Path, caplog: pytest.LogCaptureFixture
) -> None:
    locks.write_text("a file")
    with caplog.at_level(logging.WARNING, "vllm"):
        assert start(engines, 2) == [0, 1]
    assert "modules cannot be locked there (Not a directory)" in caplog.text
    assert start(engines, 2) == [0, 1]


def test_all_users_may_lock_and_none_may_remove(engines: ExitStack, locks: Path) -> None:
    before = os.umask(0o077)
    try:
        start(engines, 1)
    finally:
        os.umask(before)
    assert locks.stat().st_mode & 0o7777 == 0o1777
    assert (locks / "0.lock").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(
    ("text", "expected"), [(None, BOX), ("", BOX), ("3,2", [3, 2]), (" 6 , 7", [6, 7])]
)
def test_visible_modules_are_listed_or_all(text: str | None, expected: list[int]) -> None:
    assert visible_modules(text, 8) == expected


@pytest.mark.parametrize("text", ["a", "0-3", "1,,2", "1,1", "-1"])
def test_a_list_of_modules_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"HABANA_VISIBLE_MODULES=.*such as 0,1"):
        visible_modules(text, 8)


@pytest.mark.parametrize(
    ("text", "num_ranks", "expected"),
    [(None, 1, None), ("", 1, None), ("-1", 1, None), ("-1", 2, None), ("5", 1, 5)],
)
def test_a_chosen_module_is_kept(text: str | None, num_ranks: int, expected: int | None) -> None:
    assert chosen_module(text, BOX, num_ranks) == expected


@pytest.mark.parametrize(
    ("text", "num_ranks", "error"),
    [
        ("5", 2, "HLS_MODULE_ID=5: names one module, and 2 ranks need one each"),
        ("9", 1, "HLS_MODULE_ID=9: is not one of the visible modules, 0, 1, 2"),
        ("x", 1, "HLS_MODULE_ID=x: is not one of the visible modules"),
    ],
)
def test_a_chosen_module_that_cannot_be_is_refused(text: str, num_ranks: int, error: str) -> None:
    with pytest.raises(ConfigError, match=error):
        chosen_module(text, [0, 1, 2], num_ranks)


def test_a_chosen_module_of_another_engine_is_an_error(
    engines: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(engines, 1)
    monkeypatch.setenv("HLS_MODULE_ID", "0")
    with pytest.raises(ConfigError, match="0 of 1 are free: other engines have modules 0"):
        start(engines, 1)


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_a_container_whose_module_has_another_number_leaves_the_choice_to_the_driver(
    monkeypatch: pytest.MonkeyPatch, num_ranks: int
) -> None:
    monkeypatch.setenv("HLS_MODULE_ID", "")  # so that what is set is taken back
    monkeypatch.delenv("HABANA_VISIBLE_MODULES", raising=False)

    def open_device(index: int) -> None:
        if os.environ.get("HLS_MODULE_ID") is not None:
            raise RuntimeError("synStatus=8 [Device not found]")

    monkeypatch.setattr(bridge, "open_device", open_device)
    monkeypatch.setattr(bridge, "num_devices", lambda: 1)
    place = Place(0, 2, local_rank=0, local_size=num_ranks, tp=Group(0, 2), device=0)
    if num_ranks == 1:
        acquire(place)
        assert modules.OWN.module == 0 and "HLS_MODULE_ID" not in os.environ
    else:
        with pytest.raises(ConfigError, match="module 0 cannot be acquired: synStatus=8"):
            acquire(place)


def test_a_report_says_which_modules_engines_have(
    engines: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HABANA_VISIBLE_MODULES", "2,3,5")
    monkeypatch.setattr(bridge, "num_devices", lambda: 8)
    start(engines, 2, [2, 3, 5])
    for _ in range(2):  # looking takes nothing
        assert dict(modules.report()) == {
            "visible modules": "2, 3, 5",
            "modules of engines": "2, 3",
        }
    monkeypatch.setenv("HABANA_VISIBLE_MODULES", "two")
    assert "separated by commas" in dict(modules.report())["visible modules"]
