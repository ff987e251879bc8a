"""Fixtures that tests of several packages share."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from vllm import logger as vllm_logger

# Deadlines measure the machine, which other tests share.
hypothesis.settings.register_profile("shared machine", deadline=None)
hypothesis.settings.load_profile("shared machine")

STORY = Path(__file__).resolve().parents[1] / "examples" / "models" / "tiny-story"


class LogLines(logging.Handler):
    """Keeps what our loggers say, whatever is set up about propagation."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    @property
    def text(self) -> str:
        return "\n".join(record.getMessage() for record in self.records)


@pytest.fixture
def log_lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[LogLines]:
    """What the `vllm` loggers say during a test; nothing counts as said once already."""
    monkeypatch.setattr(vllm_logger, "_said", set())
    lines = LogLines()
    logger = logging.getLogger("vllm")
    logger.addHandler(lines)
    yield lines
    logger.removeHandler(lines)


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
