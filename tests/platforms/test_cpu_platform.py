"""Finding a platform, and what the CPU says of itself."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import STORY
from tests.models.harness import config_for
from vllm import envs
from vllm.errors import ConfigError
from vllm.ops import REFERENCES
from vllm.platforms import platform_of
from vllm.platforms.cpu import native


def test_auto_is_the_cpu_and_always_the_same_object():
    assert platform_of() is platform_of("cpu")
    assert platform_of().name == "cpu"


@pytest.mark.parametrize(
    ("name", "message"), [("cuda", "not supported by this version"), ("tpu", "no such device")]
)
def test_other_devices_are_refused_with_the_remedy(name, message):
    with pytest.raises(ConfigError, match=rf"--device {name}: {message}.*cpu"):
        platform_of(name)


def test_overrides_are_of_ops_that_exist():
    assert set(platform_of("cpu").ops()) <= set(REFERENCES)


def test_every_dtype_is_one_torch_can_multiply():
    for dtype in platform_of("cpu").capabilities.dtypes:
        x = torch.ones(2, 2, dtype=dtype)
        assert (x @ x).dtype == dtype


def test_every_instruction_set_that_is_built_can_be_asked_for(monkeypatch):
    build = runpy.run_path(str(Path(__file__).parents[2] / "csrc" / "build.py"))
    for isa in ("auto", "baseline", *build["X86_ISAS"], *build["ARM_ISAS"]):
        monkeypatch.setenv("VLLM_CPU_ISA", isa)
        assert isa == envs.VLLM_CPU_ISA


def test_isa_the_machine_lacks_is_refused():
    if not native.is_available():
        pytest.skip("native kernels are not built")
    with pytest.raises(ConfigError, match=r"VLLM_CPU_ISA=neon.*auto or one of baseline"):
        native.select_isa("neon")


def test_without_the_extension_the_reference_serves_with_one_warning():
    script = (
        "import sys; sys.modules['vllm._C'] = None\n"
        "from vllm.platforms import platform_of\n"
        "from vllm.platforms.cpu.attention import NativeAttention\n"
        "p = platform_of('cpu'); p.ops(); p.ops()\n"
        "print(dict(p.ops()), NativeAttention.rejects(None, p.capabilities))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "{} the kernels were not built"
    assert (done.stdout + done.stderr).count("native CPU kernels are not available") == 1


def test_isa_is_taken_from_the_environment():
    if not native.is_available():
        pytest.skip("native kernels are not built")
    script = "import torch\nfrom vllm.platforms import platform_of\nplatform_of('cpu').ops()\n"
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={"VLLM_CPU_ISA": "baseline", "PATH": "", "VLLM_LOGGING_LEVEL": "INFO"},
    )
    assert "CPU kernels: baseline" in done.stdout + done.stderr


def test_what_hides_sums_elsewhere_is_said_to_do_nothing_here(monkeypatch, caplog):
    monkeypatch.setenv("VLLM_ROW_PARALLEL_CHUNKS", "3")
    with caplog.at_level("WARNING", "vllm"):
        for _ in range(2):
            config_for(STORY)
    said = [line for line in caplog.messages if "VLLM_ROW_PARALLEL" in line]
    assert len(said) == 1
    assert said[0].startswith("VLLM_ROW_PARALLEL_CHUNKS=3 has no effect on the CPU")
