"""What runs on a machine that has copies of the model for a server elsewhere."""

from __future__ import annotations

import os
import select
import socket
import time
from typing import Final

import msgspec

from vllm.config.vllm import VllmConfig
from vllm.engine.addresses import Addresses, CoreAddress
from vllm.engine.core_handle import MOST_STARTS, CoreProcess, core_config, end_all
from vllm.engine.core_process import CoreMaker, make_engine_core
from vllm.engine.inboxes import Inboxes
from vllm.engine.scratch import Scratch
from vllm.engine.stopped_cores import StoppedCores
from vllm.envs import Environment
from vllm.errors import ConfigError, EngineDeadError
from vllm.executor.handshake import introduction
from vllm.executor.nodes.link import Kind, Link, LinkClosed
from vllm.executor.nodes.meeting import check_own_ip
from vllm.logger import init_logger
from vllm.messages.copies import CopiesHello, CopiesWelcome, CopySign
from vllm.messages.engine import EngineDead
from vllm.utils.open_files import need_open_files

logger = init_logger(__name__)

_TICK_S: Final = 0.5
_CONNECT_S: Final = 10.0
_SILENT_S: Final = 20.0  # of the server, which asks every second


class CopiesAgent:
    """Starts the cores of this machine, and starts again those that end."""

    def __init__(
        self, config: VllmConfig, make_core: CoreMaker = make_engine_core, address: str = ""
    ) -> None:
        """`address`: of this machine, if another than that with which it reaches the server."""
        parallel = config.parallel
        first = parallel.data_parallel_start_rank
        self._config = config
        self._make_core = make_core
        self._address = address
        self._numbers = range(first, first + parallel.data_parallel_size_local)
        self._at = f"{parallel.data_parallel_address}:{parallel.data_parallel_rpc_port}"
        self._inboxes: Inboxes | None = None  # once the server has let this machine in
        self._processes: dict[int, CoreProcess] = {}
        self._num_failed = dict.fromkeys(self._numbers, 0)
        self._last_ends = dict.fromkeys(self._numbers, "")
        self._stopped_cores: StoppedCores | None = None

    def run(self) -> None:
        """Until the server ends.

        Raises ConfigError if the server refuses this machine or cannot be reached, and
        EngineDeadError if it is lost, or no core starts.
        """
        need_open_files()
        own_ip = str(Environment().VLLM_HOST_IP)
        check_own_ip(own_ip)
        own_ip = own_ip or self._address
        self._link = self._connected()
        self._scratch = Scratch()
        try:
            welcome = self._join(own_ip)
            self._host = own_ip or self._link.own_address
            self._addresses = Addresses(self._scratch.path, welcome.front_ends)
            self._inboxes = Inboxes(welcome.front_ends)
            for number, life in zip(self._numbers, welcome.lives, strict=True):
                address = CoreAddress(self._scratch.path, number, life, self._host)
                self._start(address._replace(meeting=welcome.meeting))
            if welcome.meeting:
                self._stopped_cores = StoppedCores(lambda: list(self._processes.values()))
            self._serve()
            logger.info("The server has ended")
        except LinkClosed as closed:
            raise EngineDeadError(
                f"the server at {self._at} is lost: {closed}. The copies of this machine are ended"
            ) from None
        finally:
            self._end()

    def _connected(self) -> Link:
        parallel = self._config.parallel
        limit_s = Environment().VLLM_ENGINE_READY_TIMEOUT_S
        until_s = time.monotonic() + limit_s
        is_told = False
        while True:
            try:
                address = (parallel.data_parallel_address, parallel.data_parallel_rpc_port)
                return Link(socket.create_connection(address, _CONNECT_S))
            except OSError as error:
                why = error.strerror or str(error)
            if time.monotonic() > until_s:
                raise ConfigError(
                    f"the server cannot be reached at {self._at} (--data-parallel-address, "
                    f"--data-parallel-rpc-port) within {limit_s:g} s: {why}. Start it with the "
                    "same arguments and without --headless, and give all machines an address "
                    "that leads to it."
                )
            if not is_told:
                is_told = True
                logger.info("The server does not answer at %s yet (%s)", self._at, why)
            time.sleep(_TICK_S)

    def _join(self, own_ip: str) -> CopiesWelcome:
        """Raises ConfigError, LinkClosed."""
        hello = CopiesHello(
            self._numbers.start, len(self._numbers), own_ip, introduction(self._config)
        )
        self._link.limit_unacknowledged()
        self._link.put(Kind.HELLO, msgspec.msgpack.encode(hello))
        while True:
            if not self._link.wait(_SILENT_S):
                raise ConfigError(f"what answers at {self._at} is not the server of an engine")
            for frame in self._link.frames():
                if frame.kind is Kind.REFUSED:
                    raise ConfigError(frame.payload.decode())
                if frame.kind is Kind.WELCOME:
                    return msgspec.msgpack.decode(frame.payload, type=CopiesWelcome)

    def _start(self, address: CoreAddress) -> None:
        number = address.number
        self._processes[number] = CoreProcess(
            self._make_core,
            core_config(self._config, number),
            self._addresses,
            address,
            f"engine core {number} of {self._host}",
        )

    def _serve(self) -> None:
        """Raises LinkClosed, EngineDeadError."""
        heard_s = time.monotonic()
        while True:
            poll = select.poll()
            poll.register(self._link, select.POLLIN)
            cores = {process.sentinel: n for n, process in self._processes.items()}
            for sentinel in cores:
                poll.register(sentinel, select.POLLIN)
            for fd, _ in poll.poll(_TICK_S * 1000):
                if fd in cores:
                    self._lose(cores[fd])
            for frame in self._link.frames():
                heard_s = time.monotonic()
                if frame.kind is Kind.STOP:
                    return
                if frame.kind is Kind.BEAT:
                    self._answer()
            if time.monotonic() - heard_s > _SILENT_S:
                raise LinkClosed(f"it gave no sign of life for {_SILENT_S:g} s")

    def _answer(self) -> None:
        signs = [
            CopySign(
                number, process.address.life, process.pulse.silence_s(), self._last_ends[number]
            )
            for number, process in self._processes.items()
        ]
        self._link.put(Kind.STATES, msgspec.msgpack.encode(signs))

    def _lose(self, number: int) -> None:
        process = self._processes.pop(number)
        why = self._last_ends[number] = process.how_it_ended()
        logger.error("%s", why)
        end_all([process])
        assert self._inboxes is not None
        self._inboxes.put(EngineDead(why), number, process.address.life)
        was_up = os.path.exists(process.address.up)
        if was_up:
            self._num_failed[number] = 0
        elif not process.ended_with_others:
            self._num_failed[number] += 1
        process.address.remove_files()
        if self._num_failed[number] < MOST_STARTS:
            self._start(process.address.next_life())
            self._answer()
            return
        logger.error("engine core %d is given up after %d starts", number, MOST_STARTS)
        if not self._processes or self._config.spreads_experts:
            raise EngineDeadError(f"no engine core of this machine starts: {why}")

    def _end(self) -> None:
        """No core is left."""
        if self._stopped_cores is not None:
            self._stopped_cores.close()
        for process in self._processes.values():
            process.process.terminate()
        end_all(list(self._processes.values()))
        if self._inboxes is not None:
            self._inboxes.close()
        self._link.finish(0.0)
        self._link.close()
        self._scratch.remove()


def run_copies(config: VllmConfig) -> None:
    """Run the copies of this machine, as CopiesAgent.run does."""
    CopiesAgent(config).run()
