"""The engine on the emulated HPU, in each mode of execution."""

from __future__ import annotations

import itertools
import json
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from tests.hpu_emulator.conftest import ROOT, Emulated
from tests.limits import HANG_S
from tools.tiny_models import random_checkpoint

pytestmark = pytest.mark.engine

# An architecture in compile mode, or a run of traffic, prints one line at its end.
SILENCE_S = 6 * HANG_S

# PT_HPU_LAZY_MODE and --enforce-eager.
MODES = {
    "compile": ("0", False),
    "eager": ("0", True),
    "graphs": ("1", False),
    "lazy": ("1", True),
}


def run(
    emulated: Emulated, lazy: str, module: str, *arguments: str, **variables: str
) -> list[dict[str, Any]]:
    """The JSON lines that the module prints; one that prints nothing for long hangs."""
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", f"tests.platforms.hpu.{module}", *arguments],
            env=emulated.environment(
                PT_HPU_LAZY_MODE=lazy, VLLM_LOGGING_LEVEL="ERROR", **variables
            ),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=errors,
        )
        printed = all_of(process).decode()
        errors.seek(0)
        assert process.returncode == 0, printed[-4000:] + errors.read()[-4000:]
    return [json.loads(line) for line in printed.splitlines() if line.startswith("{")]


def all_of(process: subprocess.Popen[bytes]) -> bytes:
    """What it prints until it ends. It is killed when nothing came for `SILENCE_S`."""
    assert process.stdout is not None
    printed = b""
    with process:
        while select.select([process.stdout], [], [], SILENCE_S)[0]:
            if not (data := os.read(process.stdout.fileno(), 65536)):
                return printed
            printed += data
        process.kill()
    raise AssertionError(f"nothing was printed for {SILENCE_S:.0f} s after {printed[-1000:]!r}")


# Whose layers are of most kinds, where tracing one takes half a minute; combinations trace others.
TRACED = ("gemma2", "deepseek_v3")


def checks() -> Iterator[Any]:
    """(mode, what, names): architectures in parts, which processes may share."""
    for what, mode in itertools.product(("quantized", "reload"), MODES):
        marks = [] if mode in ("compile", "graphs") else [pytest.mark.product]
        yield pytest.param(mode, what, (), id=f"{mode}, {what}", marks=marks)
    for mode, name in itertools.product(MODES, ("llama", "gemma2")):  # the second has windows
        marks = [] if name == "llama" or mode == "eager" else [pytest.mark.product]
        name_of_test = f"{mode}, combinations of {name}"
        yield pytest.param(mode, "combinations", (name,), id=name_of_test, marks=marks)
    names = tuple(random_checkpoint.ARCHITECTURES)
    for mode in ("eager", "graphs", "lazy"):
        for part in (0, 1):
            marks = [pytest.mark.product] if part and mode == "lazy" else []
            name_of_test = f"{mode}, part {part}"
            yield pytest.param(mode, "architectures", names[part::2], id=name_of_test, marks=marks)
    yield pytest.param("compile", "architectures", TRACED, id="compile, some")
    # Variants of rotary embedding are of no concern to layers, which is what is traced.
    others = [name for name in names if name not in TRACED and not name.endswith("-rope")]
    for name in others:
        yield pytest.param(
            "compile", "architectures", (name,), id=f"compile, {name}", marks=pytest.mark.product
        )


@pytest.mark.parametrize(("mode", "what", "names"), checks())
def test_tokens_are_those_of_the_cpu(
    emulated: Emulated, mode: str, what: str, names: Sequence[str]
) -> None:
    lazy, is_eager = MODES[mode]
    lines = run(emulated, lazy, "in_mode", what, *names, *["--enforce-eager"] * is_eager)
    assert len(lines) >= max(1, len(names))
    assert {line["name"]: line["problem"] for line in lines if line["problem"]} == {}


@pytest.mark.parametrize("mode", MODES)
def test_a_model_without_a_cache_runs(emulated: Emulated, mode: str) -> None:
    lazy, is_eager = MODES[mode]
    strategies = ["lin", "exp", "pad"] if mode == "graphs" else []
    lines = run(
        emulated, lazy, "in_mode", "cacheless", *strategies, *["--enforce-eager"] * is_eager
    )
    assert len(lines) == 2 * max(1, len(strategies))
    assert {line["name"]: line["problem"] for line in lines if line["problem"]} == {}


def test_bfloat16_is_as_near_to_float32_as_on_the_cpu(emulated: Emulated) -> None:
    lines = run(emulated, "0", "in_mode", "bfloat16", "--enforce-eager")
    assert len(lines) == 4
    assert {line["name"]: line for line in lines if line["problem"]} == {}


@pytest.mark.parametrize("mode", ["eager", "graphs"])
def test_whatever_a_request_wants_it_gets_as_on_the_cpu(emulated: Emulated, mode: str) -> None:
    lazy, is_eager = MODES[mode]
    lines = run(emulated, lazy, "features", *["--enforce-eager"] * is_eager)
    assert len(lines) > 50
    assert {line["name"]: line["problem"] for line in lines if line["problem"]} == {}


@pytest.mark.parametrize("mode", MODES)
def test_graph_runners_take_inputs_of_any_kind(emulated: Emulated, mode: str) -> None:
    lazy, is_eager = MODES[mode]
    (line,) = run(emulated, lazy, "stage_inputs", *["--enforce-eager"] * is_eager)
    runners = {
        "compile": "CompiledRunner",
        "eager": "HpuRunner",
        "graphs": "HpuGraphRunner",
        "lazy": "LazyRunner",
    }
    assert line["runner"] == runners[mode]
    if mode == "graphs":
        assert line["calls"] == 2 + 4, "two sizes are captured and replayed, the third is run"


@pytest.mark.parametrize("mode", ["compile", "graphs"])
def test_tokens_that_plans_give_compile_nothing(emulated: Emulated, mode: str) -> None:
    (result,) = run(emulated, MODES[mode][0], "traffic", "60", "given")
    assert result["problem"] == ""
    assert (result["compilations"], result["syncs"], result["fallbacks"]) == (0, 0, 0)
    assert result["given"] > 1000 and result["finished"] > 45


@pytest.mark.parametrize("mode", ["compile", "graphs"])
def test_traffic_after_warm_up_compiles_nothing_and_never_waits(
    emulated: Emulated, mode: str
) -> None:
    (result,) = run(emulated, MODES[mode][0], "traffic", "500")
    assert result["problem"] == ""
    assert (result["compilations"], result["syncs"], result["fallbacks"]) == (0, 0, 0)
    assert result["preemptions"] > 0 and result["prefix_hits"] > 0
    assert result["finished"] > 400


@pytest.mark.parametrize("mode", ["compile", "graphs"])
@pytest.mark.parametrize(
    ("provoked", "error"), [("sync", "HostSyncError"), ("compile", "RecompilationError")]
)
def test_what_traffic_must_not_do_is_found_when_it_does_it(
    emulated: Emulated, mode: str, provoked: str, error: str
) -> None:
    (result,) = run(emulated, MODES[mode][0], "traffic", "20", provoked)
    assert error in result["problem"]


def test_ops_that_run_on_the_host_are_counted(emulated: Emulated) -> None:
    (result,) = run(emulated, "1", "traffic", "5", "fallback")
    assert result["fallbacks"] > 0 and "linalg" in " ".join(result["fallback_ops"])
