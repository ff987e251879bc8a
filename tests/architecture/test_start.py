"""What a plain start does not import: a second here is a second of every start."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.limits import HANG_S

# Parent packages stand for all they contain.
HEAVY_OFFLINE = {
    "fastapi",
    "llguidance",
    "openai",
    "pydantic",
    "sympy",
    "torch._dynamo",
    "torch._inductor",
    "transformers",
    "triton",
    "uvicorn",
    "xgrammar",
}
HEAVY_CORE = HEAVY_OFFLINE | {"prometheus_client", "tqdm.notebook"}
HEAVY_SERVER = HEAVY_OFFLINE - {"fastapi", "pydantic", "uvicorn"}
HEAVY_COMMAND = HEAVY_OFFLINE | {"torch"}

GENERATE = """
import sys
from vllm import LLM, SamplingParams

llm = LLM(model=sys.argv[1], max_model_len=64, kv_cache_memory_bytes=1 << 24, max_num_seqs=2)
llm.generate("Once", SamplingParams(max_tokens=2), use_tqdm=False)
"""
SERVE = """
from vllm.entrypoints.openai import application, launcher
"""
# Until the core's process is started; which imports the first of them again.
COMMAND = """
from vllm.entrypoints.openai import api_server
from vllm.entrypoints.cli import main, serve
"""
CORE = """
import vllm.engine.core
import vllm.executor.in_process
import vllm.worker.worker
"""
REPORT = "\nprint('loaded', *[n for n, m in sys.modules.items() if m is not None])\n"

CASES = {
    "offline": (GENERATE, HEAVY_OFFLINE),
    "server": (SERVE, HEAVY_SERVER),
    "command": (COMMAND, HEAVY_COMMAND),
    "core": (CORE, HEAVY_CORE),
}


@pytest.mark.parametrize(("program", "heavy"), CASES.values(), ids=CASES)
def test_what_is_not_needed_is_not_imported(
    program: str, heavy: set[str], tiny_story: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import sys\n" + program + REPORT, str(tiny_story)],
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("loaded "))
    assert heavy & set(line.split()) == set()
