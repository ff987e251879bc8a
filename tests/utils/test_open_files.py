from __future__ import annotations

import resource
import subprocess
import sys

from vllm.utils.open_files import NEEDED

SERVE = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", "/no/such/model"]
CLIENT = "from vllm.engine.client import ProcessClient; ProcessClient(None)"


def run_with(limit: int, hard: int, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard)),
    )


def test_too_few_files_are_told_with_the_number_that_is_needed() -> None:
    for command in (SERVE, [sys.executable, "-c", CLIENT]):
        done = run_with(20, 20, *command)
        assert f"may open 20 files, and an engine in a process of its own needs {NEEDED}" in (
            done.stderr
        )
    assert run_with(20, 20, *SERVE).returncode == 2


def test_a_limit_that_may_be_raised_is_raised() -> None:
    assert "an engine in a process of its own needs" not in run_with(20, NEEDED, *SERVE).stderr
