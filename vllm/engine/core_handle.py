"""The process of a core, seen from the process that has started it."""

from __future__ import annotations

import multiprocessing
import multiprocessing.util  # its exit hook joins children: it must be registered before ours
import signal
import time
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing.context import SpawnProcess
from typing import Final

from vllm.config.vllm import VllmConfig
from vllm.engine.addresses import Addresses, CoreAddress
from vllm.engine.core_group import GROUP_EXIT
from vllm.engine.core_process import CoreMaker, core_main
from vllm.engine.early_core import CORE_NAME, take
from vllm.engine.heartbeat import ProcessPulse, make_file
from vllm.errors import ConfigError, EngineDeadError, LoadError, NotAvailable
from vllm.messages.engine import EngineDead
from vllm.utils.spawning import IMPORTED, IMPORTED_EXIT, undisturbed

PATIENCE_S: Final = 5.0  # for a core to end by itself before it is terminated, and then killed
START_PATIENCE_S: Final = 2.0  # the same, for one that is not up yet
MOST_STARTS: Final = 3  # in a row that may fail before a core is given up
START_ERRORS: Final = {cls.__name__: cls for cls in (ConfigError, LoadError, NotAvailable)}


class CoreProcess:
    """Starts a core at `address`; `end_all` ends it."""

    def __init__(
        self,
        make_core: CoreMaker,
        config: VllmConfig,
        addresses: Addresses,
        address: CoreAddress,
        name: str = "the engine core",
    ) -> None:
        self.address = address
        self.name = name  # for people
        make_file(address.heartbeat)
        self._process = _start(make_core, config, addresses, address)
        self.pulse = ProcessPulse(address.heartbeat, self.pid)

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def sentinel(self) -> int:
        """A file that is readable once the process has ended."""
        return self._process.sentinel

    @property
    def process(self) -> SpawnProcess:
        return self._process

    @property
    def ended_with_others(self) -> bool:
        """Whether it ended because another core did with which it shares experts."""
        return self._process.exitcode == GROUP_EXIT

    def how_it_ended(self) -> str:
        """For people; once the sentinel is readable. Raises ConfigError if it could not begin."""
        self._process.join(1.0)  # its sentinel fires a moment before its exit code is known
        code = self._process.exitcode
        if code == IMPORTED_EXIT:
            raise ConfigError(IMPORTED)
        if code is None:
            how = "closed its sockets"
        elif code == GROUP_EXIT:
            how = "ended with another one"
        elif code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
        else:
            how = f"ended with exit code {code}"
        return f"{self.name} (process {self.pid}) {how}"


def end_all(cores: Sequence[CoreProcess], patience_s: float = PATIENCE_S) -> None:
    """Wait for cores that were told to end, and end them otherwise."""
    running = [core.process for core in cores]
    for escalate in (SpawnProcess.terminate, SpawnProcess.kill):
        until_s = time.monotonic() + patience_s
        for process in running:
            process.join(max(0.0, until_s - time.monotonic()))
        running = [process for process in running if process.is_alive()]
        for process in running:
            escalate(process)
    for process in running:
        process.join()


def core_config(config: VllmConfig, rank: int) -> VllmConfig:
    """What the core with the copy `rank` of the model is configured with."""
    return replace(config, parallel=replace(config.parallel, data_parallel_rank=rank))


def start_error(dead: EngineDead) -> Exception:
    """What a core that did not start raises in its front end."""
    known = START_ERRORS.get(dead.kind)
    if known is not None:
        return known(dead.error)
    return EngineDeadError(f"the engine core did not start: {dead.error}")


def _start(
    make_core: CoreMaker, config: VllmConfig, addresses: Addresses, address: CoreAddress
) -> SpawnProcess:
    """The process of a core: one that waits for it, or a new one."""
    early = take()
    if early is not None:
        early.order(core_main, make_core, config, addresses, address)
        return early.process
    # Not a daemon: a daemon may not have children, and the ranks are the core's.
    process = multiprocessing.get_context("spawn").Process(
        target=core_main, args=(make_core, config, addresses, address), name=CORE_NAME
    )
    with undisturbed():
        process.start()
    return process
