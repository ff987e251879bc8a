"""Two machines made of network namespaces: an address each, a cable, and no shared /dev/shm."""

from __future__ import annotations

import secrets
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

_DEVICE: Final = "eth0"
# Runs the words after the first, a directory, with that as /dev/shm. `ip netns exec` has given the
# process a view of file systems of its own.
_WITH_SHM: Final = 'mount --bind "$0" /dev/shm && exec "$@"'


class Machine:
    """A network namespace."""

    def __init__(self, name: str, address: str, shm: Path) -> None:
        self.name = name
        self.address = address
        self.shm = shm  # what is left of its /dev/shm when all its processes have ended

    def command(self, *words: str) -> list[str]:
        """Runs a program there; its process id is that of the process that is started."""
        return ["ip", "netns", "exec", self.name, "sh", "-c", _WITH_SHM, str(self.shm), *words]

    def pids(self) -> list[int]:
        """Of all its processes."""
        return [int(pid) for pid in _ip("netns", "pids", self.name).split()]

    def cut(self) -> None:
        """Take the cable out; the other end loses its carrier."""
        _ip("-n", self.name, "link", "set", _DEVICE, "down")


@contextmanager
def two_machines(folder: Path) -> Iterator[tuple[Machine, Machine]]:
    """Removed in the end, whatever happened. Raises OSError where there can be none."""
    word, machines = secrets.token_hex(4), []
    with ExitStack() as made:
        for number in (0, 1):
            name, shm = f"vllm-test-{word}-{number}", folder / f"shm-{number}"
            shm.mkdir()
            machine = Machine(name, f"10.77.0.{number + 1}", shm)
            _ip("netns", "add", machine.name)
            made.callback(_ip, "netns", "del", machine.name)
            machines.append(machine)
        ends = [["name", _DEVICE, "netns", machine.name] for machine in machines]
        _ip("link", "add", *ends[0], "type", "veth", "peer", *ends[1])
        for machine in machines:
            _ip("-n", machine.name, "address", "add", f"{machine.address}/24", "dev", _DEVICE)
            for device in ("lo", _DEVICE):
                _ip("-n", machine.name, "link", "set", device, "up")
        done = subprocess.run(machine.command("true"), capture_output=True, text=True, check=False)
        if done.returncode:
            raise OSError(done.stderr.strip())
        yield machines[0], machines[1]


def _ip(*words: str) -> str:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"ip {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout
