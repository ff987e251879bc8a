"""What is said where the plugin, the driver or the device is missing, broken or taken."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import STORY
from tests.hpu_emulator.conftest import ROOT, Emulated
from tests.limits import HANG_S

pytestmark = pytest.mark.engine

HOLDER = """
import sys
import habana_frameworks.torch as ht
import torch

torch.zeros(1, device="hpu")
print("held", flush=True)
sys.stdin.read()
"""
NAME = "from vllm.platforms import platform_of; print(platform_of().name)"


def serve(emulated: Emulated, *path: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """`vllm serve --device hpu`, with `path` alone instead of the emulator where given."""
    environment = emulated.environment(VLLM_SKIP_WARMUP="1", **variables)
    if path:
        environment["PYTHONPATH"] = os.pathsep.join([*map(str, path), str(ROOT)])
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(STORY)]
    command += ["--device", "hpu", "--host", "127.0.0.1", "--port", "0"]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=HANG_S, check=False
    )


def expect(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    said = done.stdout + done.stderr
    assert done.returncode == 2, said
    assert "Traceback" not in said
    assert [part for part in parts if part not in said] == [], said


def test_a_missing_plugin_is_named_with_what_to_do(emulated: Emulated, tmp_path: Path) -> None:
    expect(serve(emulated, tmp_path), "habana-torch-plugin", "is not installed", "--device cpu")


def test_a_plugin_that_cannot_be_imported_is_named_with_its_reason(
    emulated: Emulated, tmp_path: Path
) -> None:
    package = tmp_path / "habana_frameworks" / "torch"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").touch()
    (package / "__init__.py").write_text("raise ImportError('libSynapse.so: undefined symbol')\n")
    expect(serve(emulated, tmp_path), "cannot be loaded", "libSynapse.so", "made for this PyTorch")


def test_a_machine_without_devices_is_told_to_check_the_driver(emulated: Emulated) -> None:
    expect(serve(emulated, HPU_EMULATOR_DEVICES="0"), "no Gaudi is visible", "driver", "hl-smi")


@pytest.fixture
def holder(emulated: Emulated) -> Iterator[subprocess.Popen[str]]:
    """A process that has the only device."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER],
        env=emulated.environment(HPU_EMULATOR_DEVICES="1"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.communicate("")


@pytest.mark.usefixtures("holder")
def test_a_device_of_another_process_is_said_to_be_taken(emulated: Emulated) -> None:
    expect(
        serve(emulated, HPU_EMULATOR_DEVICES="1"),
        "module 0 cannot be acquired",
        "end the one that holds it",
        "HABANA_VISIBLE_MODULES",
    )


def test_an_index_beyond_the_devices_is_refused_with_their_number(emulated: Emulated) -> None:
    done = emulated.start(
        "from vllm.platforms.hpu import bridge; bridge.acquire(2)", HPU_EMULATOR_DEVICES="2"
    )
    assert done.returncode != 0
    assert "device 2 was asked for, but this process sees 2" in done.stderr, done.stderr


def test_the_device_is_found_and_a_variable_wins_over_that(emulated: Emulated) -> None:
    assert emulated.run(NAME).split()[-1] == "hpu"
    assert emulated.run(NAME, HPU_EMULATOR_DEVICES="0").split()[-1] == "cpu"
    assert emulated.run(NAME, VLLM_TARGET_DEVICE="cpu").split()[-1] == "cpu"


def test_without_the_plugin_the_device_found_is_the_cpu(emulated: Emulated) -> None:
    environment = {**emulated.environment(), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", NAME], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["cpu"]
