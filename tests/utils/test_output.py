"""Output that cannot be written ends no server, and does not hide why one ended."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

# A model that does not exist: what a start says on its way is said, and then why it ended.
SERVE = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", "/no/such/model"]
FULL = """
import os, sys
from vllm.utils.output import STDERR, STDOUT, forgive, last_words

forgive(STDOUT, STDERR)
for _ in range(20_000):
    print("to a full disk", flush=True)
    print("to a full disk", file=sys.stderr)
"""
MISTAKE = """
import sys
from unittest.mock import patch
from vllm.entrypoints.cli import main

sys.argv = ["vllm", "serve"]
with patch.object(main, "_run", side_effect=KeyError("lost")):
    sys.exit(main.main())
"""
NEXT_FILE = """
import os, sys
from vllm.utils.output import STDERR, STDOUT, forgive

forgive(STDOUT, STDERR)
with open(sys.argv[1], "w") as file:
    print("lost", file=sys.stderr, flush=True)
    os.write(2, b"lost, too")
    file.write(f"{file.fileno() > 2}")
"""


def shell(line: str, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", "-c", f'"$@" {line}', "sh", *command],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("line", ["2>/dev/full", "2>&-", "0<&- 2>&-"])
def test_a_reason_that_standard_error_does_not_take_goes_to_standard_output(line: str) -> None:
    done = shell(line, *SERVE)
    assert done.returncode == 2, done
    assert done.stdout.startswith("vllm serve: ") and "/no/such/model" in done.stdout


@pytest.mark.parametrize("line", ["2>/dev/full", "2>&-"])
def test_so_does_a_flag_that_is_wrong(line: str) -> None:
    done = shell(line, *SERVE, "--no-such-flag")
    assert done.returncode == 2, done
    assert done.stdout.startswith("vllm serve: ") and "--no-such-flag" in done.stdout


@pytest.mark.parametrize("line", ["2>/dev/full", "2>&-"])
def test_so_does_a_mistake_of_ours(line: str) -> None:
    done = shell(line, sys.executable, "-c", MISTAKE)
    assert done.returncode == 1, done
    assert done.stdout.startswith("Traceback") and done.stdout.endswith("KeyError: 'lost'\n")


def test_without_any_output_the_exit_code_still_tells() -> None:
    assert shell(">/dev/full 2>/dev/full", *SERVE).returncode == 2
    assert shell(">&- 2>&- <&-", *SERVE).returncode == 2


def test_a_full_disk_is_no_error_of_who_logs() -> None:
    done = shell(">/dev/full 2>/dev/full", sys.executable, "-c", FULL)
    assert done.returncode == 0


def test_files_that_are_opened_later_do_not_take_the_place_of_closed_output(tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert shell(">&- 2>&- <&-", sys.executable, "-c", NEXT_FILE, str(path)).returncode == 0
    assert path.read_text() == "True"


def test_logs_are_set_up_without_standard_error() -> None:
    code = "from vllm.logger import init_logger; init_logger('vllm.a').warning('x'); print('on')"
    assert shell("2>&-", sys.executable, "-c", code).stdout == "on\n"
