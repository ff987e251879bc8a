import shutil
from pathlib import Path

import pytest
import torch

from tests.models.harness import config_for
from tools.tiny_models import random_checkpoint
from vllm.loader import load_model
from vllm.platforms.cpu import CpuPlatform


@pytest.fixture(scope="session")
def llama(tmp_path_factory) -> Path:
    return random_checkpoint.make("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture
def copied(llama, tmp_path) -> Path:
    """A checkpoint the test may break."""
    return Path(shutil.copytree(llama, tmp_path / "copied"))


@pytest.fixture
def load():
    def run(path: Path, **settings):
        return load_model(config_for(path, **settings), CpuPlatform(), torch.device("cpu"))

    return run
