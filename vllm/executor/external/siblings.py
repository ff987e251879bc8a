"""The processes of one engine as one of them sees the others: values from the driver, and ends.

All are connected to the driver, which passes on what ends the engine. Every process hears in a
thread of its own, so that the death of another shows at once, wherever its rank waits.
"""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Final

import msgspec

from vllm.executor.base import ExecutorDied
from vllm.executor.external.meeting import Peer
from vllm.executor.nodes.link import Kind, Link, LinkClosed
from vllm.messages.codec import decoder, encoder
from vllm.messages.rank import failure, revive
from vllm.messages.sibling import (
    AllShown,
    Drawn,
    Fault,
    Gone,
    Left,
    Planned,
    Shown,
    Word,
)
from vllm.messages.step import StepResult

_TICK_S: Final = 0.5
_NEWS_S: Final = 1.0  # for the death of a rank to show after another has failed for it
_LEAVING_S: Final = 5.0  # for what a rank that has left has still begun


class Siblings:
    """One thread waits here; any may send."""

    def __init__(
        self, rank: int, driver: int, world_size: int, peers: Mapping[int, Peer], limit_s: float
    ) -> None:
        """`limit_s`: how long a rank may be behind another that waits for it to plan a step."""
        self._rank, self._driver, self._world_size = rank, driver, world_size
        self._peers = peers
        self._limit_s = limit_s
        self._news = threading.Condition()
        self._sending = threading.Lock()
        self._encode: Callable[[Word], bytes] = encoder().encode
        self._decoder: msgspec.msgpack.Decoder[Word] = decoder(Word)
        # Everything below belongs to `_news`.
        self._plans: dict[int, dict[int, Planned]] = {}  # by step and rank, until all agree
        self._last_planned = dict.fromkeys([rank, *peers], 0)
        self._results: dict[int, StepResult] = {}
        self._shown: dict[int, bytes] = {}
        self._all_shown: list[bytes] | None = None
        self._left_s: dict[int, float] = {}  # when a rank has stopped its engine
        self._fault: Exception | None = None
        self._may_follow = False  # the fault may come of another's
        self._is_closing = False
        self._num_telling = 0  # threads that tell others what has ended the engine
        self._listener = threading.Thread(target=self._listen, name="siblings", daemon=True)
        self._listener.start()

    # -- what the ranks do ------------------------------------------------------------------------

    def gather(self, value: bytes, limit_s: float | None, what: str) -> list[bytes]:
        """What every rank shows, by rank: every rank calls it. Raises ExecutorDied after `limit_s`,
        or what has ended the engine. `what`: for people, what ranks do before they show it."""
        began_s = time.monotonic()
        is_driver = self._rank == self._driver

        def check() -> None:
            missing = sorted(self._peers.keys() - self._shown.keys())
            if left := [rank for rank in missing if rank in self._left_s]:
                raise ExecutorDied(f"{self._names(left)} has left while it was to {what}")
            if limit_s is not None and time.monotonic() - began_s > limit_s:
                raise ExecutorDied(
                    f"{self._names(missing)} did not {what} within {limit_s:g} s "
                    "(VLLM_ENGINE_READY_TIMEOUT_S)"
                )

        if not is_driver:
            if limit_s is not None:
                limit_s += 2 * _LEAVING_S  # the driver can name those that are late
            self._send(Shown(value))
            self.wait(lambda: self._all_shown is not None, check)
            with self._news:
                values, self._all_shown = self._all_shown, None
            assert values is not None
            return values
        self.wait(lambda: self._shown.keys() == self._peers.keys(), check)
        with self._news:
            shown = {**self._shown, self._rank: value}
            self._shown.clear()
        values = [shown[rank] for rank in range(self._world_size)]
        self._send(AllShown(values))
        return values

    def plan(self, plan: Planned) -> None:
        """This rank has queued a step."""
        with self._news:
            self._last_planned[self._rank] = plan.step
        self._compare(self._rank, plan)
        self._send(plan)

    def publish(self, result: StepResult) -> None:
        """By the driver: the values of a step, which all ranks commit."""
        with self._news:
            self._results[result.step] = result
            self._news.notify_all()
        self._send(Drawn(result))

    def values_of(self, step: int) -> StepResult:
        """Wait for the values of a step. Raises what has ended the engine."""
        began_s = time.monotonic()
        self.wait(lambda: step in self._results, lambda: self._check_others(step, began_s))
        with self._news:
            return self._results.pop(step)

    def wait(self, is_there: Callable[[], bool], check: Callable[[], None] = lambda: None) -> None:
        """Until `is_there()`, or raise what has ended the engine. `check` raises ExecutorDied, with
        which the engine ends everywhere; it is called about twice a second, and after news."""
        with self._news:
            while not is_there():
                if self._fault is not None:
                    self._hear_out()
                    raise self._fault
                try:
                    check()
                except ExecutorDied as died:
                    error = died
                    break
                self._news.wait(_TICK_S)
            else:
                return
        self.fail(error)
        raise error

    def notify(self) -> None:
        """Something that `wait` waits for may have come."""
        with self._news:
            self._news.notify_all()

    def check(self) -> None:
        """Returns at once where nothing has ended the engine; raises that otherwise."""
        with self._news:
            if self._fault is not None:
                self._hear_out()
                raise self._fault

    def fail(self, error: Exception) -> None:
        """This rank has failed: the engine ends everywhere."""
        failed = failure(error)
        is_verdict = isinstance(error, ExecutorDied)
        with self._telling():
            self._end(error, not is_verdict and failed.may_follow)
            self._send(Gone(str(error)) if is_verdict else Fault(self._rank, failed))

    @property
    def has_failed(self) -> bool:
        with self._news:
            return self._fault is not None

    def leave(self) -> None:
        """This rank stops in order, or after a fault. Nothing is heard any more."""
        with self._news:
            self._news.wait_for(lambda: not self._num_telling, _LEAVING_S)
            self._is_closing = True
        self._send(Left())
        for peer in self._peers.values():
            peer.link.shut()
        self._listener.join(_LEAVING_S)
        for peer in self._peers.values():
            peer.link.close()

    # -- what others say --------------------------------------------------------------------------

    def _listen(self) -> None:
        poll = select.poll()
        ranks = {peer.link.fileno(): rank for rank, peer in self._peers.items()}
        for fd in ranks:
            poll.register(fd, select.POLLIN)
        while ranks:
            for fd, _ in poll.poll():
                rank = ranks[fd]
                try:
                    for frame in self._peers[rank].link.frames():
                        self._take(rank, self._decoder.decode(frame.payload))
                except (LinkClosed, msgspec.DecodeError) as error:
                    poll.unregister(fd)
                    del ranks[fd]
                    self._lose(rank, str(error))

    def _take(self, rank: int, word: Word) -> None:
        match word:
            case Planned():
                self._compare(rank, word)
            case Fault(origin, failed):
                with self._telling():
                    self._end(revive(failed, origin, is_alone=False), failed.may_follow)
                    self._pass_on(rank, word)
            case Gone(why):
                with self._telling():
                    self._end(ExecutorDied(why), False)
                    self._pass_on(rank, word)
            case _:
                with self._news:
                    self._note(rank, word)
                    self._news.notify_all()

    def _note(self, rank: int, word: Word) -> None:
        match word:
            case Drawn(result):
                self._results[result.step] = result
            case Shown(value):
                self._shown[rank] = value
            case AllShown(values):
                self._all_shown = values
            case Left():
                self._left_s[rank] = time.monotonic()

    def _lose(self, rank: int, why: str) -> None:
        with self._news:
            if self._is_closing or rank in self._left_s:
                return
        self.fail(ExecutorDied(f"{self._peers[rank].name} is gone: {why}"))

    def _compare(self, rank: int, plan: Planned) -> None:
        """Of a step that a rank has planned. Ranks other than the driver leave it to that."""
        with self._news:
            self._last_planned[rank] = max(self._last_planned[rank], plan.step)
            self._news.notify_all()
            if self._rank != self._driver or not self._peers:
                return
            plans = self._plans.setdefault(plan.step, {})
            plans[rank] = plan
            mine = plans.get(self._rank)
            others = [(r, p) for r, p in plans.items() if mine and p.digest != mine.digest]
            if len(plans) == self._world_size:
                del self._plans[plan.step]
        if mine is not None and others:
            other, theirs = min(others)
            self.fail(
                ExecutorDied(
                    f"the schedulers differ: step {plan.step} of rank {other} has {theirs}, that "
                    f"of rank {self._rank} {mine}, or they differ in contents. Every process must "
                    "make the same requests, with the same parameters, in the same order."
                )
            )

    def _check_others(self, step: int, began_s: float) -> None:
        """Raises ExecutorDied if a rank that is needed for a step will not compute it."""
        now_s = time.monotonic()
        for rank, peer in self._peers.items():
            is_behind = self._last_planned[rank] < step
            left_s = self._left_s.get(rank)
            if left_s is not None and (is_behind or now_s - left_s > _LEAVING_S):
                raise ExecutorDied(
                    f"{peer.name} has stopped its engine, and rank {self._rank} is at step {step}. "
                    "Every process must make the same requests."
                )
            if is_behind and now_s - began_s > self._limit_s:
                raise ExecutorDied(
                    f"{peer.name} has not come to step {step} for {self._limit_s:g} s, in which "
                    f"rank {self._rank} waited for it. Every process must make the same requests; "
                    "--distributed-timeout-seconds is how long they wait for each other."
                )

    # -- ends -------------------------------------------------------------------------------------

    def _end(self, error: Exception, may_follow: bool) -> None:
        """The first fault counts; a death counts more than an error that may come of it."""
        with self._news:
            if self._fault is None or (self._may_follow and not may_follow):
                self._fault, self._may_follow = error, may_follow
            self._news.notify_all()

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """The engine ends here, and `leave` waits until others have been sent why."""
        with self._news:
            self._num_telling += 1
        try:
            yield
        finally:
            with self._news:
                self._num_telling -= 1
                self._news.notify_all()

    def _hear_out(self) -> None:
        until_s = time.monotonic() + _NEWS_S
        while self._may_follow and (left_s := until_s - time.monotonic()) > 0:
            self._news.wait(left_s)

    def _pass_on(self, origin: int, word: Fault | Gone) -> None:
        if self._rank == self._driver:
            self._send(word, but=origin)

    def _send(self, word: Word, but: int = -1) -> None:
        """To all others; those that are gone show elsewhere."""
        if not self._peers:
            return
        message = self._encode(word)
        with self._sending:
            for rank, peer in self._peers.items():
                if rank != but:
                    with suppress(LinkClosed, OSError):
                        self._put(peer.link, message)

    def _put(self, link: Link, message: bytes) -> None:
        link.put(Kind.WORD, message, on_wait=self._give_up)

    def _give_up(self) -> None:
        """Of a rank that takes nothing, once the engine has ended."""
        if self._is_closing or self._fault is not None:
            raise LinkClosed("the engine has ended")

    def _names(self, ranks: list[int]) -> str:
        return ", ".join(self._peers[rank].name for rank in ranks)
