"""Every rule fails on a planted violation."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.architecture import rules
from tests.architecture.rules import Source

PLANTED: list[tuple[Callable[[Source], Iterator[str]], str, str]] = [
    (rules.wrong_imports, "vllm/core/scheduler.py", "from vllm.engine.core import EngineCore"),
    (rules.wrong_imports, "vllm/core/scheduler.py", "def f():\n    import vllm.entrypoints.llm"),
    (
        rules.wrong_imports,
        "vllm/core/scheduler.py",
        "if TYPE_CHECKING:\n    from vllm.engine.core import EngineCore",
    ),
    (rules.wrong_imports, "vllm/config/a.py", "from vllm.platforms.base import Platform"),
    (rules.wrong_imports, "vllm/core/scheduler.py", "from vllm.loader import load_model"),
    (rules.wrong_imports, "vllm/models/llama.py", "from vllm.config.vllm import VllmConfig"),
    (rules.wrong_imports, "vllm/worker/worker.py", "from vllm.platforms.cpu import CpuPlatform"),
    (rules.wrong_imports, "vllm/envs.py", "from vllm.config import CacheConfig"),
    (rules.device_words, "vllm/worker/worker.py", "if current_platform.is_hpu():\n    pass"),
    (rules.device_words, "vllm/sample/sampler.py", "torch.cuda.synchronize()"),
    (rules.device_words, "vllm/models/llama.py", "import habana_frameworks.torch as htorch"),
    (rules.environment_reads, "vllm/worker/worker.py", "import os\nx = os.environ['A']"),
    (rules.environment_reads, "vllm/worker/worker.py", "import os\nx = os.getenv('A')"),
    (rules.environment_reads, "vllm/worker/worker.py", "from os import environ"),
    (rules.unsafe_statements, "vllm/a.py", "layer.__class__ = Other"),
    (rules.unsafe_statements, "vllm/a.py", "import torch\ntorch.compile = None"),
    (rules.unsafe_statements, "vllm/a.py", "from vllm import envs\nenvs.VLLM_PORT = 1"),
    (rules.unsafe_statements, "vllm/a.py", "try:\n    f()\nexcept Exception:\n    pass"),
    (rules.unsafe_statements, "vllm/a.py", "try:\n    f()\nexcept:\n    pass"),
    (rules.unsafe_statements, "vllm/a.py", "ok = hasattr(model, 'lm_head')"),
    (rules.unsafe_statements, "vllm/a.py", "head = getattr(model, 'lm_head', None)"),
    (rules.hasty_tests, "tests/a.py", "assert time.monotonic() - started < 2"),
    (rules.hasty_tests, "tests/a.py", "assert 5 > time.perf_counter() - started"),
    (rules.hasty_tests, "tests/a.py", "process.join(5)"),
    (rules.hasty_tests, "tests/a.py", "await asyncio.wait_for(task, 20)"),
    (rules.hasty_tests, "tests/a.py", "httpx.get(url, timeout=10)"),
]

ALLOWED: list[tuple[Callable[[Source], Iterator[str]], str, str]] = [
    (rules.wrong_imports, "vllm/core/scheduler.py", "from vllm.messages.step import StepPlan"),
    (rules.wrong_imports, "vllm/worker/worker.py", "from vllm.messages.step import StepPlan"),
    (rules.wrong_imports, "vllm/worker/worker.py", "from vllm.platforms.base import Platform"),
    (rules.wrong_imports, "vllm/platforms/__init__.py", "from vllm.platforms.cpu import platform"),
    (rules.device_words, "vllm/platforms/hpu/device.py", "torch.hpu.synchronize()"),
    (rules.environment_reads, "vllm/envs.py", "import os\nx = os.environ"),
    (rules.unsafe_statements, "vllm/a.py", "self.value = 1\nname = getattr(self, name)"),
    (rules.unsafe_statements, "vllm/a.py", "try:\n    f()\nexcept OSError:\n    pass"),
    (rules.hasty_tests, "tests/a.py", "assert time.monotonic() - started > 0.04"),
    (rules.hasty_tests, "tests/a.py", "process.join(HANG_S)\nhttpx.get(url, timeout=HANG_S)"),
]


@pytest.mark.parametrize(("rule", "path", "text"), PLANTED)
def test_a_planted_violation_is_found(
    rule: Callable[[Source], Iterator[str]], path: str, text: str
) -> None:
    assert len(list(rule(Source(path, text)))) == 1


@pytest.mark.parametrize(("rule", "path", "text"), ALLOWED)
def test_what_is_allowed_is_not_reported(
    rule: Callable[[Source], Iterator[str]], path: str, text: str
) -> None:
    assert list(rule(Source(path, text))) == []


def test_circles_are_found_be_they_of_annotations_or_within_functions() -> None:
    planted = [
        Source("vllm/core/a.py", "import vllm.core.b"),
        Source("vllm/core/b.py", "if TYPE_CHECKING:\n    import vllm.core.c"),
        Source("vllm/core/c.py", "def f():\n    import vllm.core.b"),
        Source("vllm/core/d.py", "import vllm.core.a\nimport vllm.core.d"),
    ]

    assert list(rules.circles(planted)) == ["vllm.core.b -> vllm.core.c -> vllm.core.b"]
    assert list(rules.circles(planted[:2])) == []


def test_long_files_and_functions_are_found() -> None:
    long_file = Source("vllm/a.py", "x = 1\n" * 601)
    long_runner = Source("vllm/worker/model_runner.py", "x = 1\n" * 201)
    long_pass = Source("vllm/core/a.py", "x = 1\n" * 251)
    long_function = Source("vllm/a.py", "def f():\n" + "    x = 1\n" * 80)

    assert list(rules.too_long_files(long_file, {}))
    assert list(rules.too_long_files(long_runner, {}))
    assert list(rules.too_long_files(long_pass, {}))
    assert list(rules.too_long_functions(long_function, {}))
    assert not list(rules.too_long_files(long_file, {"vllm/a.py": "generated"}))
    assert not list(rules.too_long_functions(long_function, {"vllm/a.py:f": "a table"}))


def test_a_package_without_a_level_is_noticed() -> None:
    with pytest.raises(AssertionError, match=r"vllm\.novelty has no place"):
        list(rules.wrong_imports(Source("vllm/novelty/a.py", "import vllm.core.scheduler")))


def test_variables_are_compared_both_ways() -> None:
    assert list(rules.undeclared_variables("README.md", "set `VLLM_NOPE=1`", ["VLLM_A"]))
    assert list(rules.undocumented_variables("set `VLLM_AB`", ["VLLM_A"]))
    assert not list(rules.undeclared_variables("README.md", "set `VLLM_A`", ["VLLM_A"]))


def test_a_field_nobody_reads_is_found() -> None:
    reader = Source("vllm/a.py", "config.cache.used\nconfig.cache.set = 1\nparams.other")

    problems = list(rules.unread_fields("cache", ["used", "set", "unused", "other"], [reader]))

    assert [problem.rpartition(".")[2] for problem in problems] == ["other", "set", "unused"]
