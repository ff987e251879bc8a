"""Log lines: one per event, readable, in colour only where that helps."""

from __future__ import annotations

import logging
import re
import subprocess
import sys

import pytest

from tests.conftest import LogLines
from vllm.logger import LineFormatter, init_logger


def test_line_has_level_time_module_and_text() -> None:
    record = logging.LogRecord("vllm.engine.core", logging.INFO, "f", 1, "%d blocks", (5,), None)
    record.created = 0.0

    line = LineFormatter(colour=False).format(record)

    assert re.fullmatch(r"INFO \d\d-\d\d \d\d:\d\d:\d\d \[engine\.core\] 5 blocks", line)


def test_once_means_once_per_text_and_values(log_lines: LogLines) -> None:
    logger = init_logger("vllm.tests.once")

    for value in (1, 1, 2):
        logger.warning_once("value %d of a test", value)

    assert log_lines.text.splitlines() == ["value 1 of a test", "value 2 of a test"]
    assert log_lines.records[0].filename == "test_logger.py"


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, "INFO "),
        ({"VLLM_LOGGING_LEVEL": "ERROR"}, ""),
        ({"VLLM_CONFIGURE_LOGGING": "0"}, ""),
    ],
)
def test_environment_sets_level_and_whether_logging_is_set_up_at_all(
    env: dict[str, str], expected: str
) -> None:
    code = "from vllm.logger import init_logger; init_logger('vllm.a').info('hello')"

    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    )

    assert done.stderr.startswith(expected)
    assert ("hello" in done.stderr) == bool(expected)
    assert "\x1b" not in done.stderr
