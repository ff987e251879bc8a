"""The emulated device for tests: it lives in processes of its own, which see it on their path."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.limits import HANG_S
from tools.hpu_emulator.install import install

ROOT = Path(__file__).resolve().parents[2]
CHECKS = Path(__file__).resolve().parent / "checks"
# What the caller's shell says about devices must not decide what is tested.
PREFIXES = ("PT_", "HPU_", "HABANA_", "HLS_", "VLLM_")


@dataclass(frozen=True, slots=True)
class Emulated:
    """Runs programs in which torch has the device "hpu"."""

    path: Path
    locks: Path

    def environment(self, **variables: str) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(PREFIXES)}
        path = os.pathsep.join([str(self.path), str(ROOT)])
        ours = {
            "PYTHONPATH": path,
            "OMP_NUM_THREADS": "1",
            "HPU_EMULATOR_LOCKS": str(self.locks),
            "VLLM_HPU_MODULE_LOCKS": str(self.locks / "engines"),
        }
        return {**kept, **ours, **variables}

    def run(self, code: str, **variables: str) -> str:
        """What the program prints; fails with its errors unless it ends well."""
        done = self.start(code, **variables)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def start(self, code: str, **variables: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", textwrap.dedent(code)]
        environment = self.environment(**variables)
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=HANG_S, check=False
        )

    def check(self, *files: str, **variables: str) -> None:
        """Runs every check of these files of tests/hpu_emulator/checks in one process."""
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        command += ["-p", "no:randomly", "-c", os.devnull, "--rootdir", str(CHECKS)]
        # Named files are collected whatever python_files says. Were it *.py, pytest would rewrite
        # the assertions of every module of torch that is imported.
        command += ["--confcutdir", str(CHECKS)]
        command += [str(CHECKS / file) for file in files]
        environment = self.environment(**variables)
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=HANG_S, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="session")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Emulated:
    """The emulator, built first if it is missing or older than its sources."""
    try:
        return Emulated(install(), tmp_path_factory.mktemp("modules"))
    except SystemExit as error:  # which would end the test process without a word
        pytest.fail(str(error))
