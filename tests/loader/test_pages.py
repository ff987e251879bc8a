"""Of a checkpoint that was read nothing stays in memory but what was made of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vllm.loader.pages import MappedPages
from vllm.loader.stream import stream

MIB = 1 << 20
SMAPS = Path("/proc/self/smaps")

pytestmark = pytest.mark.skipif(not SMAPS.exists(), reason="needs Linux's /proc")


def resident_bytes(path: Path) -> int:
    """Bytes of `path` that this process has mapped and in memory."""
    total, is_ours = 0, False
    for line in SMAPS.read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            is_ours = line.endswith(str(path))
        elif is_ours and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total


def test_pages_are_dropped_as_tensors_are_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    tensors = {f"w{i}": torch.full((MIB,), float(i)) for i in range(8)}
    tensors["small"] = torch.arange(3.0)
    save_file(tensors, path)

    kept, peak = {}, 0
    for name, tensor in stream([path], progress=False):
        assert tensor.sum() == tensors[name].sum()
        peak = max(peak, resident_bytes(path))
        kept[name] = tensor

    assert 4 * MIB <= peak < 10 * MIB, "of 32 MiB one tensor at a time"
    for name, tensor in kept.items():  # what is read again is mapped again
        assert torch.equal(tensor, tensors[name])


def test_memory_that_is_no_file_keeps_its_contents(tmp_path: Path) -> None:
    path = tmp_path / "other"
    path.write_bytes(b"x" * 4096)
    tensor = torch.ones(MIB)
    MappedPages(path).drop(tensor)
    assert tensor.sum() == MIB
