"""Cores that hang while others wait for them in every step."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable
from typing import Final

from vllm.engine.core_handle import CoreProcess
from vllm.engine.front_link import is_readable
from vllm.logger import init_logger

logger = init_logger(__name__)

LOOK_S: Final = 1.0


class StoppedCores:
    """Kills cores that have stopped, so that all are started again; a thread of its own."""

    def __init__(self, cores: Callable[[], Iterable[CoreProcess]]) -> None:
        """`cores`: those that should give signs of life, up or not."""
        self._cores = cores
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="stopped cores", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """May be called again."""
        self._is_over.set()

    def _watch(self) -> None:
        while not self._is_over.wait(LOOK_S):
            for core in self._cores():
                # Of one that has ended the end is known already.
                if is_readable(core.sentinel) or not asyncio.run(core.pulse.has_stopped()):
                    continue
                if not self._is_over.is_set():
                    logger.error("%s is killed: other cores cannot go on without it", core.name)
                    core.process.kill()
