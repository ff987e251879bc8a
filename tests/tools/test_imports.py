"""The table of packages and imports, as a developer prints it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.architecture.rules import LEVELS, ROOT, Source
from tests.limits import HANG_S
from tools import imports


def test_the_tree_is_printed_and_clean() -> None:
    done = subprocess.run(
        [sys.executable, "-I", "tools/imports.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "No import goes up, and none goes round."
    assert {line.split()[1] for line in done.stdout.splitlines()[1:] if line.startswith("   ")} == {
        package for packages in LEVELS for package in packages
    }


def test_what_goes_up_or_round_is_marked_and_listed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    planted = [
        Source("vllm/core/a.py", "if TYPE_CHECKING:\n    from vllm.engine.core import EngineCore"),
        Source("vllm/core/b.py", "import vllm.core.c\nimport vllm.messages.step"),
        Source("vllm/core/c.py", "def f():\n    import vllm.core.b"),
    ]
    monkeypatch.setattr(imports.rules, "sources", lambda *folders: planted)

    assert imports.main() == 1
    printed = capsys.readouterr().out.splitlines()
    (core,) = (line for line in printed if line.split()[1:2] == ["core"])
    assert core.split()[3:] == ["!engine", "1,", "messages", "1"]
    assert printed[-2] == "vllm/core/a.py imports vllm.engine.core: core is below engine"
    assert printed[-1] == "a circle: vllm.core.b -> vllm.core.c -> vllm.core.b"
