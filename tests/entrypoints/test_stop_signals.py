"""A server takes signals before it imports anything, and until its process has ended."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.limits import HANG_S, wait_until

# Says when the handlers are there, and is then as slow as imports on a busy machine.
SLOW_IMPORT = """
import sys

class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == {name!r}:
            sys.meta_path.remove(self)
            print("importing", flush=True)
            while True:
                try:
                    import time
                    time.sleep(60)
                except KeyboardInterrupt:  # as some libraries do
                    pass

sys.meta_path.insert(0, Slow())
sys.argv = ["vllm", *{words!r}]
"""
COMMANDS = {
    "vllm": (
        ["serve", "/no/such/model"],
        "import vllm.entrypoints.cli.main as m; sys.exit(m.main())",
    ),
    "api_server": (["--model", "/x"], "import vllm.entrypoints.openai.api_server as m; m.main()"),
}


def started(program: str) -> subprocess.Popen[str]:
    """The program, once it has said a line."""
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert select.select([process.stdout], [], [], HANG_S)[0]
    assert process.stdout.readline() == "importing\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("command", COMMANDS)
# The first import of ours after the handlers; and the server's, when the core's process is there.
@pytest.mark.parametrize("name", ["vllm.utils", "vllm.entrypoints.openai.launcher"])
def test_a_signal_during_imports_ends_a_server_without_a_word(
    name: str, command: str, number: signal.Signals
) -> None:
    words, call = COMMANDS[command]
    with started(SLOW_IMPORT.format(name=name, words=words) + call) as process:
        # All processes of the terminal get it, as from Ctrl-C.
        os.killpg(process.pid, number)
        _, errors = process.communicate(timeout=HANG_S)
    assert (process.returncode, errors) == (0, "")
    wait_until_empty(process.pid)


def wait_until_empty(group: int) -> None:
    """No process of the group is left, but for zombies that nobody reaps in a container."""
    stats = Path("/proc").glob
    wait_until(
        lambda: not any(is_alive_in(group, path) for path in stats("[0-9]*/stat")),
        f"the end of the processes of group {group}",
    )


def is_alive_in(group: int, stat: Path) -> bool:
    try:
        state, _, its_group = stat.read_text().rpartition(")")[2].split()[:3]
    except OSError:
        return False
    return int(its_group) == group and state not in "ZX"


STARTING = """
import os, signal, sys, threading
from vllm.entrypoints.stop_signals import SIGNALS, stop_signals

def send(number=signal.SIGTERM):
    os.kill(os.getpid(), number)
"""


def run(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", STARTING + program],
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )


def test_a_signal_that_a_callback_swallowed_is_not_lost() -> None:
    done = run(
        """
class Swallows:
    def __del__(self):
        send()

with stop_signals.watched():
    stop_signals.starting()
    swallows = Swallows()
    del swallows
    with stop_signals.taken(SIGNALS, lambda: print("told", flush=True)):
        pass
"""
    )
    assert (done.returncode, done.stdout) == (0, "told\n")


def test_the_second_signal_during_a_start_does_not_interrupt_its_cleaning_up() -> None:
    done = run(
        """
with stop_signals.watched():
    stop_signals.starting()
    try:
        send()
    except KeyboardInterrupt:
        send(signal.SIGINT)
        print("cleaned", flush=True)
sys.exit(3)
"""
    )
    assert (done.returncode, done.stdout, done.stderr) == (3, "cleaned\n", "")


def test_after_a_second_signal_nothing_takes_longer_than_a_moment() -> None:
    done = run(
        """
import multiprocessing, time

def stay():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(1000)

child = multiprocessing.get_context("fork").Process(target=stay)
child.start()
with stop_signals.watched():
    with stop_signals.taken(SIGNALS, lambda: None):
        send()
        send()
    child.join()
    print("joined", flush=True)
    time.sleep(1000)
"""
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "joined\n", "")


def test_handlers_of_a_program_that_is_no_server_come_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    from vllm.entrypoints.cli.main import main

    assert main(["serve", "/no/such/model", "--port", "0", "--uds", "/no/such/dir/x"]) == 2
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
