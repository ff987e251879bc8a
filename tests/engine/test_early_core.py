"""A core's process may be started before it is known what it is to run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.limits import HANG_S
from vllm.engine import early_core
from vllm.engine.early_core import CORE_NAME


def write_name(path: str, variable: str) -> None:
    Path(path).write_text(f"{os.environ.get(variable)} {os.getpid()}")


def test_it_does_what_it_is_told_in_the_environment_of_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    early_core.start_early()
    early = early_core.take()
    assert early is not None
    assert early_core.take() is None
    monkeypatch.setenv("VLLM_TEST_SAYS", "later")
    file = tmp_path / "said"

    early.order(write_name, str(file), "VLLM_TEST_SAYS")
    early.process.join(HANG_S)

    assert early.process.exitcode == 0
    assert early.process.name == CORE_NAME
    assert file.read_text() == f"later {early.process.pid}"


def test_one_that_died_does_not_keep_its_parent(tmp_path: Path) -> None:
    early = early_core.EarlyCore()
    early.process.kill()
    early.process.join(HANG_S)
    early.order(write_name, str(tmp_path / "said"), "X")


def test_a_program_that_needs_none_ends_it(tmp_path: Path) -> None:
    program = "\n".join(
        (
            "from vllm.engine import early_core",
            "early_core.start_early()",
            "print(early_core._spare[0].process.pid)",
        )
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=HANG_S, check=True
    )
    assert not Path(f"/proc/{int(done.stdout)}").exists()
