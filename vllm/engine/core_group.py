"""A core's place among the cores of other copies that share experts with it."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import msgspec
import zmq

from vllm.distributed.groups import Group
from vllm.distributed.place import SpreadExperts
from vllm.engine.addresses import SIBLING, CoreAddress, in_url
from vllm.engine.core_meeting import LOOPBACK
from vllm.engine.inboxes import Inboxes
from vllm.envs import Environment
from vllm.errors import ConfigError
from vllm.executor.handshake import introduction
from vllm.executor.nodes.link import Kind, Link, LinkClosed
from vllm.logger import init_logger
from vllm.messages.codec import encoder
from vllm.messages.core_group import CoreHello, CoreWelcome
from vllm.messages.engine import EngineDead, Shutdown
from vllm.utils.machine import machine_id

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vllm.config.vllm import VllmConfig

logger = init_logger(__name__)

GROUP_EXIT: Final = 77  # exit code of a core that ends because another one of its group did
_TICK_S: Final = 0.5
_CONNECT_S: Final = 10.0
ENDS_S: Final = 5.0  # that the end may take, at most
_GRACE_S: Final = 1.0  # for a core that fails to start to say why before the others end
_NEWS_S: Final = 1.0  # for the news that another core has ended, once this one has failed


class CoreGroup:
    """Owns a thread, which ends this process when another core of the group ends."""

    def __init__(
        self,
        config: VllmConfig,
        own: CoreAddress,
        front_ends: Sequence[str],
        inbox_at: Callable[[str], str],
    ) -> None:
        """Waits until the cores of all copies have come.

        `own.meeting`: where. `front_ends`: where each hears how this core ends. `inbox_at` is asked
        for the address of this core's inbox, for others at that address of its machine or, if it is
        "", on this machine. Raises ConfigError.
        """
        parallel = config.parallel
        self._own = own
        self._front_ends = front_ends
        self._copy, self._size = parallel.data_parallel_rank, parallel.data_parallel_size
        self._limit_s = Environment().VLLM_ENGINE_READY_TIMEOUT_S
        self._word, _, self._at = own.meeting.partition("@")
        self._settings = introduction(config)
        self._are_all_here = parallel.data_parallel_size_local == self._size
        self._has_ranks_elsewhere = (
            parallel.nnodes > 1 or parallel.distributed_executor_backend == "ray"
        )
        self._inbox_at = inbox_at
        self._inbox = ""
        self._store: Any = None
        self.is_up = False
        self._is_left = False
        self._is_over = threading.Event()
        self._welcome = self._met()
        experts = SpreadExperts(
            Group(self._copy, self._size),
            self._welcome.rendezvous,
            self._welcome.memory,
            self._host,
        )
        self.config = replace(config, parallel=replace(parallel, experts=experts))
        threading.Thread(target=self._watch, name="core-group", daemon=True).start()

    @property
    def number(self) -> int:
        """Of this life of all."""
        return self._welcome.group

    @property
    def others(self) -> list[str]:
        """The inboxes of the other cores."""
        return [each for n, each in enumerate(self._welcome.inboxes) if n != self._copy]

    def leave(self) -> None:
        """The end of others does not matter any more."""
        self._is_left = True

    def agree_to_end(self) -> None:
        """This core is to end with the others: once all agree it is told to shut down."""
        with suppress(LinkClosed):  # the thread sees that
            self._link.put(Kind.STOP)

    def explains_failure(self) -> bool:
        """Whether what failed here did because another core has ended.

        Then the front ends are told so, and this process ends shortly.
        """
        return self._is_over.wait(_NEWS_S)

    # -- the meeting ------------------------------------------------------------------------------

    def _met(self) -> CoreWelcome:
        """Come to the meeting, again if it is lost, until all are there."""
        until_s = time.monotonic() + self._limit_s
        is_told = False
        while True:
            try:
                self._link = Link(self._connection())
                self._introduce()
                return self._welcomed(until_s)
            except (OSError, LinkClosed) as error:
                why = str(error)
            if time.monotonic() > until_s:
                raise ConfigError(
                    f"copy {self._copy} of the model cannot reach the others at {self._at} "
                    f"within {self._limit_s:g} s (VLLM_ENGINE_READY_TIMEOUT_S): {why}. Start the "
                    "server that has copy 0 with the same arguments, and give all servers a "
                    "--data-parallel-address and --data-parallel-rpc-port that lead to it."
                )
            if not is_told:
                is_told = True
                logger.info("Copy 0 does not answer at %s yet (%s)", self._at, why)
            time.sleep(_TICK_S)

    def _connection(self) -> socket.socket:
        host, _, port = self._at.rpartition(":")
        return socket.create_connection((host.strip("[]"), int(port)), _CONNECT_S)

    def _introduce(self) -> None:
        own_ip = self._own.host or Environment().VLLM_HOST_IP
        if not self._inbox:
            self._host = LOOPBACK if self._are_all_here else own_ip or self._link.own_address
            self._inbox = self._inbox_at("" if self._are_all_here else self._host)
        hello = CoreHello(
            copy=self._copy,
            word=self._word,
            owner=f"{machine_id()} {os.getppid()}",
            machine="" if self._has_ranks_elsewhere else machine_id(),
            inbox=self._inbox,
            rendezvous=self._rendezvous(),
            settings=self._settings,
        )
        self._link.limit_unacknowledged()
        self._link.put(Kind.HELLO, msgspec.msgpack.encode(hello))

    def _rendezvous(self) -> str:
        """Where the ranks of all copies meet, which the core of the first one lets them."""
        if self._copy:
            return ""
        if self._store is None:
            from vllm.distributed.rendezvous import serve_store

            self._store, self._port = serve_store(self._host)
        return f"{in_url(self._host)}:{self._port}"

    def _welcomed(self, until_s: float) -> CoreWelcome:
        began_s = time.monotonic()
        is_told = False
        while True:
            self._link.wait(_TICK_S)
            for frame in self._link.frames():
                if frame.kind is Kind.REFUSED:
                    raise ConfigError(f"copy {self._copy} is refused: {frame.payload.decode()}")
                if frame.kind is Kind.WELCOME:
                    return msgspec.msgpack.decode(frame.payload, type=CoreWelcome)
            now_s = time.monotonic()
            if now_s > until_s:
                raise ConfigError(
                    f"not all {self._size} copies that share experts have come to {self._at} "
                    f"within {self._limit_s:g} s (VLLM_ENGINE_READY_TIMEOUT_S). Start the servers "
                    "with the others, with the same arguments but for --data-parallel-rank or "
                    "--data-parallel-start-rank."
                )
            if not is_told and now_s - began_s > 2 * _CONNECT_S:
                is_told = True
                logger.info("Copy %d waits at %s for the others", self._copy, self._at)

    # -- the thread -------------------------------------------------------------------------------

    def _watch(self) -> None:
        why = self._until_over()
        if self._is_left:
            return
        self._is_over.set()
        if not self.is_up:
            time.sleep(_GRACE_S)
        logger.error("%s", why)
        inboxes = Inboxes(self._front_ends)
        inboxes.put(EngineDead(why), self._own.number, self._own.life)
        inboxes.close()
        os._exit(GROUP_EXIT)

    def _until_over(self) -> str:
        """For people: why; "" if all have agreed."""
        while True:
            self._link.wait(_TICK_S * 20)
            try:
                for frame in self._link.frames():
                    if frame.kind is Kind.FAULT:
                        return frame.payload.decode()
                    if frame.kind is Kind.STOP:
                        self.leave()
                        self._shut_down()
                        return ""
            except LinkClosed as closed:
                return f"the process of copy 0, with which it shares experts, is gone: {closed}"

    def _shut_down(self) -> None:
        with zmq.Context() as context, context.socket(zmq.PUSH) as inbox:
            inbox.ipv6 = True
            inbox.connect(self._inbox)
            inbox.send(bytes((SIBLING,)) + encoder().encode(Shutdown()))
