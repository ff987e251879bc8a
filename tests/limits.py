"""How long a test waits for what must happen: limits that only a hang meets.

A test fails because something is wrong, never because another process has the cores. So it waits
for an event, and a limit of time is there only to end a hang. What may cost a given amount is
judged by the processor time it took, which hardly grows while others run.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path

HANG_S = float(os.environ.get("VLLM_TEST_HANG_S", "300"))


def wait_until(condition: Callable[[], object], what: str = "it") -> None:
    """Return as soon as the condition holds."""
    deadline_s = time.monotonic() + HANG_S
    while not condition():
        assert time.monotonic() < deadline_s, f"{what} did not come true within {HANG_S:.0f} s"
        time.sleep(0.01)


async def until(condition: Callable[[], object], what: str = "it") -> None:
    """Return as soon as the condition holds; the event loop goes on meanwhile."""
    deadline_s = time.monotonic() + HANG_S
    while not condition():
        assert time.monotonic() < deadline_s, f"{what} did not come true within {HANG_S:.0f} s"
        await asyncio.sleep(0.002)


def is_running(pid: int) -> bool:
    """Whether a process exists and has not ended; one that nobody has waited for has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
