"""Fixtures that tests of several packages share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

STORY = Path(__file__).resolve().parents[1] / "examples" / "models" / "tiny-story"


@pytest.fixture(scope="session")
def tiny_story() -> Path:
    """The shipped model."""
    return STORY


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """checkpoint(arch, seed=0, **config_fields): a small random model, made once per session."""
    made: dict[tuple[Any, ...], Path] = {}

    def get(arch: str, seed: int = 0, **fields: Any) -> Path:
        from tools.tiny_models import random_checkpoint

        key = (arch, seed, *sorted((name, repr(value)) for name, value in fields.items()))
        if key not in made:
            out = tmp_path_factory.mktemp(arch)
            made[key] = random_checkpoint.make(arch, out, seed=seed, **fields)
        return made[key]

    return get
