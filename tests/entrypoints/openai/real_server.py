"""A real `vllm serve` in a process of its own, on a free port of this machine."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

from tests.limits import HANG_S, wait_until
from vllm.utils.processor_time import processor_time_s

ROOT = Path(__file__).resolve().parents[3]
STORY = ROOT / "examples" / "models" / "tiny-story"
NAME = "story"  # of the model, where several tests share a server


class RealServer:
    """Owns the process; `log` holds what it and its engine said."""

    def __init__(self, *flags: str, log: Path, env: dict[str, str] | None = None) -> None:
        self.log = log
        command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(STORY)]
        command += ["--host", "127.0.0.1", "--port", "0", "--max-num-seqs", "16", *flags]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "VLLM_CPU_KVCACHE_SPACE": "0.25"}
        with log.open("wb") as stderr:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**environment, **(env or {})},
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
        self.url = self._url()

    def _url(self) -> str:
        """Read the line that says it is ready."""
        assert self.process.stdout is not None
        deadline_s = time.monotonic() + HANG_S
        while time.monotonic() < deadline_s:
            if not select.select([self.process.stdout], [], [], 1.0)[0]:
                continue
            line = self.process.stdout.readline()
            if not line:
                break
            if match := re.search(r"Ready: (http://\S+) ", line):
                return match[1]
        self.stop()
        raise AssertionError(f"the server did not start:\n{self.log.read_text()}")

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=HANG_S)

    def children(self) -> list[int]:
        """Processes it started that still exist, theirs included."""
        found, parents = [], [self.process.pid]
        while parents:
            path = Path(f"/proc/{parents.pop()}/task")
            for task in path.glob("*/children"):
                with contextlib.suppress(OSError):
                    pids = [int(word) for word in task.read_text().split()]
                    found += pids
                    parents += pids
        return found

    def cpu_s(self) -> float:
        """Processor time of all its processes so far, in seconds."""
        return sum(map(processor_time_s, [self.process.pid, *self.children()]))

    def engine_pid(self) -> int:
        for pid in self.children():
            with contextlib.suppress(OSError):
                if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    return pid
        raise AssertionError("no engine process")

    def metric(self, name: str) -> float:
        text = httpx.get(f"{self.url}/metrics", timeout=HANG_S).text
        match = re.search(rf"^{re.escape(name)}\{{[^}}]*\}} (\S+)$", text, re.MULTILINE)
        assert match, f"{name} is not in\n{text}"
        return float(match[1])

    def wait_for_metric(self, name: str, value: float) -> None:
        wait_until(lambda: self.metric(name) == value, f"{name} = {value}")

    def stop(self) -> int:
        """Ask it to end; returns its exit code. Kills it, and fails, when it does not."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(HANG_S)
        except subprocess.TimeoutExpired:
            for pid in [*self.children(), self.process.pid]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.process.wait()
            raise AssertionError(f"it did not stop:\n{self.log.read_text()}") from None
        finally:
            if self.process.stdout is not None:
                self.process.stdout.close()


@contextlib.contextmanager
def serving(*flags: str, log: Path, env: dict[str, str] | None = None) -> Iterator[RealServer]:
    server = RealServer(*flags, log=log, env=env)
    try:
        yield server
    finally:
        server.stop()
