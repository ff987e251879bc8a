"""The torch profiler of a rank."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import LogLines
from vllm.envs import Environment
from vllm.errors import ConfigError, NotAvailable
from vllm.profiling.torch_profile import TorchProfile, TorchProfileSettings

CPU = (torch.profiler.ProfilerActivity.CPU,)


def settings(directory: Path | None, **changes: bool) -> TorchProfileSettings:
    return replace(TorchProfileSettings(directory, with_stack=False), **changes)


def recorded(profile: TorchProfile) -> Path:
    profile.start()
    torch.ones(3, 4) @ torch.ones(4, 5)
    return Path(profile.stop())


def ops(path: Path) -> dict[str, dict[str, Any]]:
    data = path.read_bytes()
    trace = json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)
    return {event["name"]: event for event in trace["traceEvents"]}


def test_a_recording_becomes_a_trace_named_by_its_rank(tmp_path: Path) -> None:
    profile = TorchProfile(settings(tmp_path), 3, CPU)
    paths = [recorded(profile), recorded(profile)]
    assert all(path.name.startswith("vllm-rank3-") for path in paths) and len(set(paths)) == 2
    assert all(path.name.endswith(".pt.trace.json.gz") for path in paths)
    assert all("aten::matmul" in ops(path) for path in paths)
    assert sorted(tmp_path.iterdir()) == sorted(paths)


def test_shapes_are_recorded_and_traces_left_uncompressed_where_asked_for(tmp_path: Path) -> None:
    plain = recorded(TorchProfile(settings(tmp_path, compresses=False), 0, CPU))
    assert plain.name.endswith(".pt.trace.json")
    assert "Input Dims" not in ops(plain)["aten::mm"]["args"]
    shaped = recorded(TorchProfile(settings(tmp_path, record_shapes=True), 0, CPU))
    assert ops(shaped)["aten::mm"]["args"]["Input Dims"][:2] == [[3, 4], [4, 5]]


def test_without_a_directory_it_is_refused_with_the_variable_to_set() -> None:
    profile = TorchProfile(settings(None), 0, CPU)
    for act in (profile.start, profile.stop):
        with pytest.raises(NotAvailable, match="VLLM_TORCH_PROFILER_DIR"):
            act()


def test_it_is_started_and_stopped_in_turn(tmp_path: Path) -> None:
    profile = TorchProfile(settings(tmp_path), 0, CPU)
    with pytest.raises(NotAvailable, match="start one first"):
        profile.stop()
    profile.start()
    with pytest.raises(NotAvailable, match="already"):
        profile.start()
    profile.stop()


def test_what_is_being_recorded_at_the_end_is_kept(tmp_path: Path, log_lines: LogLines) -> None:
    profile = TorchProfile(settings(tmp_path), 0, CPU)
    profile.start()
    profile.close()
    profile.close()
    assert len(list(tmp_path.iterdir())) == 1
    assert "while a profile is recorded" in log_lines.text


def test_a_trace_that_cannot_be_written_is_an_error_and_the_next_one_goes(tmp_path: Path) -> None:
    directory = tmp_path / "traces"
    directory.mkdir()
    profile = TorchProfile(settings(directory), 0, CPU)
    profile.start()
    directory.rmdir()
    with pytest.raises((OSError, RuntimeError)):
        profile.stop()
    directory.mkdir()
    assert recorded(profile).exists()


def test_settings_come_from_variables(tmp_path: Path) -> None:
    names = "RECORD_SHAPES WITH_PROFILE_MEMORY WITH_STACK WITH_FLOPS USE_GZIP".split()
    environ = {"VLLM_TORCH_PROFILER_DIR": str(tmp_path / "new")}
    default = TorchProfileSettings.read(Environment(environ))
    assert default == TorchProfileSettings(tmp_path / "new")
    assert (tmp_path / "new").is_dir()
    changed = dict(zip(names, "11010", strict=True))
    environ |= {f"VLLM_TORCH_PROFILER_{name}": value for name, value in changed.items()}
    read = TorchProfileSettings.read(Environment(environ))
    assert (read.record_shapes, read.profile_memory, read.with_stack) == (True, True, False)
    assert (read.with_flops, read.compresses) == (True, False)


@pytest.mark.parametrize("place", ["{tmp}/file", "{tmp}/file/x", "gs://bucket/traces"])
def test_a_place_that_is_no_directory_is_refused_at_the_start(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    where = place.format(tmp=tmp_path)
    with pytest.raises(ConfigError, match=rf"VLLM_TORCH_PROFILER_DIR={where}"):
        TorchProfileSettings.read(Environment({"VLLM_TORCH_PROFILER_DIR": where}))
