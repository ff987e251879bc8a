"""Directories of engines do not outlive them."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from vllm.engine.scratch import LOCK, Scratch

KEEP = """
import os, sys, tempfile
from vllm.engine.scratch import Scratch

tempfile.tempdir = sys.argv[1]
made = Scratch()
os.mkdir(f"{made.path}/metrics")
os.kill(os.getpid(), 9)
"""


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # Not pytest's own, whose path is long.
    with tempfile.TemporaryDirectory(prefix="scratch-") as parent:
        monkeypatch.setattr(tempfile, "tempdir", parent)
        yield


def test_what_a_killed_process_left_is_removed_by_the_next() -> None:
    parent = Path(tempfile.gettempdir())
    for _ in range(2):  # the second finds what the first left
        subprocess.run([sys.executable, "-c", KEEP, str(parent)], check=False)
        assert len(list(parent.iterdir())) == 1
    made = Scratch()
    assert list(parent.iterdir()) == [Path(made.path)]
    made.remove()
    made.remove()
    assert not list(parent.iterdir())


def test_what_has_an_owner_or_is_not_ours_stays() -> None:
    parent = Path(tempfile.gettempdir())
    first = Scratch()
    foreign = parent / "vllm-of-somebody"
    foreign.mkdir()
    (parent / "vllm-link").symlink_to(foreign)
    target = parent / "target"
    target.mkdir()
    (target / LOCK).touch()
    (parent / "vllm-trap").symlink_to(target)
    second = Scratch()
    assert Path(first.path).is_dir() and foreign.is_dir() and (target / LOCK).exists()
    first.remove()
    second.remove()
