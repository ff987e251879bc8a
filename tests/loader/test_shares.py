"""A rank reads its share of a checkpoint from disk, not all of it."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.models.harness import config_for
from tools.tiny_models import random_checkpoint
from vllm.device.collectives import Alone
from vllm.loader import load_model
from vllm.platforms import platform_of


class OneOf(Alone):
    """A rank that loads its share and computes nothing."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size


def cached_share(path: Path) -> float:
    """Of the pages of a file, those that the system has read."""
    with path.open("rb") as file:
        pages = -(-path.stat().st_size // mmap.PAGESIZE)
        found = (ctypes.c_ubyte * pages)()
        mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        begin = np.frombuffer(mapped, np.uint8).ctypes.data
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.mincore(ctypes.c_void_p(begin), ctypes.c_size_t(len(mapped)), found) == 0
        return sum(page & 1 for page in found) / pages


def forget(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_ahead(path: Path) -> int:
    """Bytes that the system reads at a time from the disk of a file."""
    device = path.stat().st_dev
    setting = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
    return int(setting.read_text()) << 10 if setting.exists() else 8 << 20


@pytest.mark.parametrize(("rank", "size"), [(0, 1), (0, 2), (1, 2), (3, 4)])
def test_the_pages_of_other_ranks_are_not_read(rank: int, size: int, tmp_path: Path) -> None:
    """Most of this checkpoint are an embedding and a head, of which ranks have rows."""
    path = random_checkpoint.make("llama", tmp_path / "llama", vocab_size=400_000)
    file = path / "model.safetensors"
    forget(file)
    if cached_share(file) > 0.01:
        pytest.skip("this file system keeps files in memory")
    config = config_for(path)
    load_model(config, platform_of("cpu"), torch.device("cpu"), OneOf(rank, size))
    share, whole = cached_share(file), file.stat().st_size
    # Of each table the system reads some more before and behind what is asked for.
    more = 8 * read_ahead(file) / whole
    assert 1 / size + more < 0.95 or size == 1, "the checkpoint is too small to tell"
    assert 0.9 / size < share < 1 / size + more, share
