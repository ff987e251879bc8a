"""A core's process that imports what it will need while nobody knows yet what it is to run."""

from __future__ import annotations

import atexit
import importlib
import multiprocessing
import multiprocessing.util  # its exit hook joins children: it must be registered before ours
import signal
from collections.abc import Mapping
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any, Final, NamedTuple

from vllm import envs
from vllm.utils.lasting_imports import lasting_imports
from vllm.utils.spawning import begin_process, undisturbed

CORE_NAME: Final = "vllm-engine-core"  # of the process
_PATIENCE_S: Final = 2.0


class Order(NamedTuple):
    """What the process is to do: `target(*args)`, in the environment its parent has by now."""

    target: Any
    args: tuple[Any, ...]
    environment: Mapping[str, str]


class EarlyCore:
    """Owned by whoever took it from `take`, who starts it with `order` or ends it."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        orders, self._orders = context.Pipe(duplex=False)
        # Not a daemon: a daemon may not have children, and the ranks are the core's.
        self.process: SpawnProcess = context.Process(
            target=_wait_for_order, args=(orders,), name=CORE_NAME
        )
        with undisturbed():
            self.process.start()
        orders.close()

    def order(self, target: Any, *args: Any) -> None:
        """If it has died, its process's sentinel tells."""
        try:
            self._orders.send(Order(target, args, envs.whole()))
        except OSError:
            return
        finally:
            self._orders.close()

    def end(self) -> None:
        self._orders.close()
        self.process.terminate()
        self.process.join(_PATIENCE_S)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


_spare: list[EarlyCore] = []


def start_early() -> None:
    """Start a process for the next core of this one."""
    with undisturbed():
        if not _spare:
            _spare.append(EarlyCore())


def take() -> EarlyCore | None:
    """The process that waits to become a core, if there is one."""
    return _spare.pop() if _spare else None


@atexit.register
def end_spare() -> None:
    """End a process that was not needed after all."""
    early = take()
    if early is not None:
        early.end()


def _wait_for_order(orders: Connection) -> None:
    # As in core_main; until then SIGTERM may end it at any point.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    begin_process()
    with lasting_imports():
        importlib.import_module("vllm.engine.core")
    try:
        order: Order = orders.recv()
    except EOFError:  # nothing to do after all, or the parent is gone
        return
    envs.take_over(order.environment)
    order.target(*order.args)
