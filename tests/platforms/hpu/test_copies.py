"""Copies of the model on emulated HPUs: each has a module of its own."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.engine_e2e.test_nodes import ROOT, SHARED, run
from tests.engine_e2e.test_tensor_parallel import engine
from tests.hpu_emulator.conftest import Emulated, emulated
from tests.limits import HANG_S

__all__ = ["emulated"]  # a fixture

pytestmark = pytest.mark.engine


@pytest.mark.parametrize(("size", "ranks"), [(2, 1), pytest.param(2, 2, marks=pytest.mark.product)])
def test_tokens_are_those_of_one_copy_on_a_cpu(
    emulated: Emulated, tiny_story: Path, size: int, ranks: int
) -> None:
    options = {
        **SHARED,
        "model": str(tiny_story),
        "device": "hpu",
        "block_size": 16,
        "max_num_seqs": 2,
        "data_parallel_size": size,
        "tensor_parallel_size": ranks,
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.engine_e2e.node", "tokens", json.dumps(options)],
        cwd=ROOT,
        env=emulated.environment(PT_HPU_LAZY_MODE="1"),
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert json.loads(done.stdout.splitlines()[-1])["tokens"] == run(engine(tiny_story, 1))
    modules = re.findall(r"rank \d+ on module (\d+)", done.stderr)
    assert len(modules) == len(set(modules)) == size * ranks
