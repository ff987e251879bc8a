"""A Ray cluster on this machine: a raylet per address of the loopback network."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from tests.limits import wait_until
from vllm.utils.network_utils import get_open_port

ROOT = Path(__file__).resolve().parents[2]
STORE_BYTES = 80 << 20
# Of all that takes part, so that no token is looked for or left in the user's home.
VARIABLES = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}


class RayCluster:
    """Programs that use it need VARIABLES. Ends with `stop`.

    Ray takes 127.0.0.1 for the machine's other address, but not 127.0.0.2.
    """

    def __init__(self) -> None:
        self._processes: list[subprocess.Popen[bytes]] = []
        self._directory = tempfile.mkdtemp(prefix="ray")  # a short path: it has sockets
        self.address = f"127.0.0.2:{get_open_port()}"

    def add(self, variables: Mapping[str, str] | None = None, **options: object) -> str:
        """Another raylet; its address. Returns when it is there.

        By default it has two CPUs. `variables` are in its environment, and so in that of ranks.
        """
        number = len(self._processes)
        address = f"127.0.0.{2 + number}"
        given = {
            "node-ip-address": address,
            "num-cpus": 2,
            "object-store-memory": STORE_BYTES,
            **options,
        }
        if number:
            where = [f"--address={self.address}"]
        else:
            port = self.address.rpartition(":")[2]
            where = ["--head", f"--port={port}", f"--temp-dir={self._directory}"]
            where.append("--include-dashboard=false")
        words = [f"--{name}={value}" for name, value in given.items()]
        log = Path(self._directory) / f"start-{number}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "ray.scripts.scripts", "start", *where, *words, "--block"],
                cwd=ROOT,
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", ""))),
                    "OMP_NUM_THREADS": "1",
                    **VARIABLES,
                    **(variables or {}),
                },
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._processes.append(process)

        def has_come() -> bool:
            assert process.poll() is None, log.read_text()
            return b"Ray runtime started" in log.read_bytes()

        wait_until(has_come, f"the raylet at {address}")
        return address

    def raylet(self, address: str) -> int:
        """The process of the raylet at an address."""
        for process in Path("/proc").glob("[0-9]*"):
            try:
                words = (process / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            is_raylet = words[0].endswith(b"/raylet/raylet")
            is_ours = any(self._directory.encode() in word for word in words)
            if is_raylet and is_ours and f"--node_ip_address={address}".encode() in words:
                return int(process.name)
        raise AssertionError(f"no raylet at {address}")

    def stop(self) -> None:
        """At once: Ray's own way takes long, and leaves no less."""
        for process in reversed(self._processes):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        wait_until(lambda: not self._leftovers(), "the end of all workers of the cluster")
        shutil.rmtree(self._directory, ignore_errors=True)

    def _leftovers(self) -> list[int]:
        """Processes that Ray has started in sessions of their own."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                words = (process / "cmdline").read_bytes()
            except OSError:
                continue
            if self._directory.encode() in words:
                found.append(int(process.name))
        return found
