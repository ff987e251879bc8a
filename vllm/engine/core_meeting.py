"""Where the engine cores of copies come together that share experts.

None of them can go on without the others. So they live and end as a group: the meeting waits until
the core of every copy has come and tells each of the others; when one ends, it tells those that are
left, which end too; and all who are started again make the next group.
"""

from __future__ import annotations

import os
import secrets
import select
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from vllm.engine.addresses import host_of, in_url
from vllm.errors import ConfigError
from vllm.executor.handshake import compare_with_first, introduction
from vllm.executor.nodes.arrivals import Arrivals
from vllm.executor.nodes.link import Kind, Link, LinkClosed
from vllm.executor.nodes.meeting import refuse
from vllm.logger import init_logger
from vllm.messages.core_group import CoreHello, CoreWelcome
from vllm.utils.machine import machine_id
from vllm.utils.unnamed_memory import UnnamedMemory

if TYPE_CHECKING:
    from vllm.config.vllm import VllmConfig

logger = init_logger(__name__)

LOOPBACK: Final = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Member:
    """A core that has come."""

    link: Link
    hello: CoreHello

    @property
    def name(self) -> str:
        address = self.link.peer_address
        return f"engine core {self.hello.copy}" + f" ({address})" * (address != LOOPBACK)


class CoreMeeting:
    """Owns a thread, which waits for cores and looks after the group that they make."""

    def __init__(self, config: VllmConfig, host: str, port: int = 0, word: str = "") -> None:
        """Listens at once; port 0: at any. Cores that do not give the `word` are refused.

        Raises ConfigError.
        """
        parallel = config.parallel
        self._size = parallel.data_parallel_size
        self._num_stages = parallel.pipeline_parallel_size
        self._settings = introduction(config)
        self._word = word
        self._arrivals = _arrivals(host, port)
        self.at = f"{word}@{in_url(host)}:{self._arrivals.port}"
        self._memory = UnnamedMemory()  # of the group
        self._members: dict[int, Member] = {}  # by copy
        self._agreed: set[int] = set()  # copies whose cores are to end with the others
        self._number = 0  # of the group
        self._is_complete = False
        self._is_closing = False
        self._over = os.eventfd(0)
        self._thread = threading.Thread(target=self._run, name="core-meeting", daemon=True)
        self._thread.start()

    def expect_end(self) -> None:
        """From now on cores end because they are told to: the others need not hear of it."""
        self._is_closing = True

    def close(self) -> None:
        """Once the cores have ended. May be called again."""
        self._is_closing = True
        if self._over < 0:
            return
        os.eventfd_write(self._over, 1)
        self._thread.join()
        for member in self._members.values():
            member.link.close()
        self._arrivals.close()
        self._memory.close()
        os.close(self._over)
        self._over = -1

    # -- the thread -------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            poll = select.poll()
            members = {member.link.fileno(): member for member in self._members.values()}
            for fd in (self._over, *self._arrivals.filenos(), *members):
                poll.register(fd, select.POLLIN)
            for fd, _ in poll.poll():
                if fd == self._over:
                    return
                if fd not in members:
                    if (arrived := self._arrivals.hear(fd)) is not None:
                        self._meet(*arrived)
                elif self._members.get(members[fd].hello.copy) is members[fd]:
                    self._look_after(members[fd])

    def _meet(self, link: Link, hello: CoreHello) -> None:
        member = Member(link, hello)
        try:
            self._check(member)
        except ConfigError as error:
            logger.error("%s is refused: %s", member.name, error)
            refuse(link, str(error))
            return
        self._join(member)

    def _check(self, member: Member) -> None:
        """Raises ConfigError."""
        hello = member.hello
        if not secrets.compare_digest(hello.word.encode(), self._word.encode()):
            raise ConfigError("it does not know the word that cores of this engine are given")
        compare_with_first(self._settings, hello.settings, "copy", hello.copy)
        if not 0 <= hello.copy < self._size:
            raise ConfigError(f"copies are numbered from 0, and there are {self._size}")
        there = self._members.get(hello.copy)
        if there is not None and there.hello.owner != hello.owner:
            raise ConfigError(
                f"copy {hello.copy} of the model is there already, from "
                f"{there.link.peer_address}. Give every server, or machine, copies of its own "
                "(--data-parallel-rank, --data-parallel-start-rank)."
            )

    def _join(self, member: Member) -> None:
        copy = member.hello.copy
        if copy in self._members:  # started again, before the end of the life before was seen
            self._lose(self._members[copy])
        self._members[copy] = member
        if self._is_complete or len(self._members) < self._size:
            return
        self._number += 1
        self._is_complete = True
        self._agreed.clear()
        members = [self._members[number] for number in range(self._size)]
        is_one_machine = {each.hello.machine for each in members} == {machine_id()}
        num_memories = self._num_stages if is_one_machine else 0
        welcome = CoreWelcome(
            self._number,
            tuple(each.hello.inbox for each in members),
            members[0].hello.rendezvous,
            tuple(self._memory.new("vllm-experts")[0] for _ in range(num_memories)),
        )
        logger.info(
            "All %d copies are there and share experts%s",
            self._size,
            "" if is_one_machine else ", over the network",
        )
        for each in members:
            each.link.limit_unacknowledged()
            with suppress(LinkClosed):  # its end is seen in the next turn
                each.link.tell(Kind.WELCOME, msgspec.msgpack.encode(welcome))

    def _look_after(self, member: Member) -> None:
        """A core has ended, or agrees to end with the others."""
        try:
            if any(frame.kind is Kind.STOP for frame in member.link.frames()):
                self._agreed.add(member.hello.copy)
        except LinkClosed:
            self._lose(member)
        if self._is_complete and len(self._agreed) == self._size:
            self._part(Kind.STOP)

    def _lose(self, member: Member) -> None:
        del self._members[member.hello.copy]
        member.link.close()
        if not self._is_complete or self._is_closing:
            return
        logger.error("%s is gone: all copies that share experts with it end", member.name)
        self._part(Kind.FAULT, f"{member.name}, with which it shares experts, ended")

    def _part(self, kind: Kind, why: str = "") -> None:
        """Say this to all that are there, who are a group no more."""
        self._is_complete = False
        members, self._members = list(self._members.values()), {}
        self._memory.close()
        for each in members:
            with suppress(LinkClosed):
                each.link.tell(kind, why.encode())
            each.link.close()


def meeting_of(config: VllmConfig) -> CoreMeeting | None:
    """The meeting of cores that share experts, if this process, which has copy 0, is to have it.

    Raises ConfigError.
    """
    parallel = config.parallel
    if not config.spreads_experts or parallel.data_parallel_start_rank:
        return None
    if parallel.served_copies < parallel.data_parallel_size:  # other servers have only its address
        return CoreMeeting(config, parallel.data_parallel_address, parallel.data_parallel_rpc_port)
    are_all_here = parallel.data_parallel_size_local == parallel.data_parallel_size
    host = LOOPBACK if are_all_here else host_of(parallel)
    return CoreMeeting(config, host, word=secrets.token_hex(16))


def where_others_meet(config: VllmConfig) -> str:
    """Where cores meet for which another process has the meeting; "" if they need not."""
    parallel = config.parallel
    if not config.spreads_experts:
        return ""
    return f"@{in_url(parallel.data_parallel_address)}:{parallel.data_parallel_rpc_port}"


def _arrivals(host: str, port: int) -> Arrivals[CoreHello]:
    try:
        return Arrivals(host, port, CoreHello)
    except OSError as error:
        raise ConfigError(
            f"--data-parallel-address {host} --data-parallel-rpc-port {port}: copies that share "
            f"experts cannot meet there ({error.strerror}). The address must be one of this "
            "machine, which has copy 0, and the port free."
        ) from None
