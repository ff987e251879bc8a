"""docs/deployment.md says which of vLLM's paths ray.serve.llm imports, and which we have."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from tests.deployment.manifests import ROOT
from tests.limits import HANG_S

pytest.importorskip("ray.serve", reason="ray[serve] is not installed", exc_type=ImportError)

ROW = re.compile(r"^\| `(vllm[\w.]*)` \| (.*?) \| .*? \| (have|lack) \|", re.MULTILINE)


def documented() -> dict[tuple[str, str], bool]:
    """Whether we have each (module, name)."""
    rows = ROW.findall((ROOT / "docs" / "deployment.md").read_text())
    return {
        (module, name): state == "have"
        for module, names, state in rows
        for name in re.findall(r"`(\w+)`", names)
    }


def imported() -> set[tuple[str, str]]:
    """By the sources of ray.llm, without those of its offline part."""
    import ray

    found: dict[str, set[str]] = defaultdict(set)
    folder = Path(ray.__file__).parent / "llm" / "_internal"
    paths = [*(folder / "serve").rglob("*.py"), *(folder / "common").rglob("*.py")]
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vllm":
                found[node.module or ""] |= {alias.name for alias in node.names}
    return {(module, name) for module, names in found.items() for name in names}


def test_the_table_has_what_ray_imports_and_nothing_else() -> None:
    assert set(documented()) == imported()


@pytest.mark.parametrize(("module", "name"), list(documented()))
def test_the_table_says_what_we_have(module: str, name: str) -> None:
    try:
        has = hasattr(importlib.import_module(module), name)
    except ImportError:
        has = False
    assert has == documented()[module, name]


def test_it_does_not_start() -> None:
    """When it does, the page has to say something else."""
    code = "from ray.serve.llm import LLMConfig, build_openai_app"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=HANG_S, check=False
    )
    assert done.returncode == 1
    assert "ImportError: vLLM is installed but failed to import" in done.stderr
