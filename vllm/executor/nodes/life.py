"""Signs of life between nodes: node 0 asks twice a second, and an agent answers with its ranks.

The agent sends nothing by itself, so that nothing piles up while node 0 is stopped.
"""

from __future__ import annotations

import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

import msgspec

from vllm.executor.nodes.link import Kind, Link, LinkClosed
from vllm.executor.nodes.meeting import Peer
from vllm.executor.rank_state import RankState
from vllm.executor.stopwatch import Stopwatch

BEAT_S: Final = 0.5
SILENT_S: Final = 9.0  # of an agent, which does nothing that takes long
_COMPLETE: Final = b"all nodes of this engine have come already: another one has this --node-rank"


class Signs(msgspec.Struct, frozen=True):
    now_s: float  # of the agent's time.monotonic()
    states: list[RankState]  # by rank; times of the same clock


class Lives:
    """Node 0's side: asks all agents, in a thread, and remembers what they said last."""

    def __init__(self, peers: Sequence[Peer], listener: socket.socket) -> None:
        """Agents that come to `listener` from now on are refused."""
        self._links = {peer.node: _life_of(peer) for peer in peers}
        self._listener = listener
        self._refused: deque[socket.socket] = deque(maxlen=16)
        self._states: dict[int, list[RankState]] = {}
        self._faults: dict[int, str] = {}
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._run, name="nodes", daemon=True)
        self._thread.start()

    def states(self, node: int) -> list[RankState]:
        """Of its ranks, by rank, in the time of this machine; empty before it has said any."""
        return self._states.get(node, [])

    def fault(self, node: int) -> str:
        """Why a node is taken for lost; "" if it is not."""
        return self._faults.get(node, "")

    def stop(self) -> None:
        """May be called again."""
        self._ends.set()
        self._thread.join()
        for link in self._links.values():
            link.close()
        for connection in self._refused:
            connection.close()

    def _run(self) -> None:
        silent_s = dict.fromkeys(self._links, 0.0)
        stopwatch = Stopwatch(BEAT_S)
        while not self._ends.is_set():
            lapse_s = stopwatch.lapse_s()
            for node, link in self._links.items():
                if node in self._faults:
                    continue
                silent_s[node] += lapse_s
                if silent_s[node] > SILENT_S:
                    self._faults[node] = f"gave no sign of life for {silent_s[node]:.0f} s"
                self._ask(node, link)
            until_s = time.monotonic() + BEAT_S
            while (left_s := until_s - time.monotonic()) > 0 and not self._ends.is_set():
                for node in self._heard(left_s):
                    silent_s[node] = 0.0

    def _ask(self, node: int, link: Link) -> None:
        try:
            link.put(Kind.BEAT)
        except LinkClosed as closed:
            self._faults[node] = str(closed)

    def _heard(self, timeout_s: float) -> list[int]:
        """Nodes that gave a sign of life."""
        poll = select.poll()
        open_ones = {x.fileno(): n for n, x in self._links.items() if n not in self._faults}
        for fd in (self._listener.fileno(), *open_ones):
            poll.register(fd, select.POLLIN)
        heard = []
        for fd, _ in poll.poll(timeout_s * 1000):
            if fd not in open_ones:
                self._refuse()
                continue
            node = open_ones[fd]
            try:
                for frame in self._links[node].frames():
                    signs = msgspec.msgpack.decode(frame.payload, type=Signs)
                    self._states[node] = _translated(signs)
                    heard.append(node)
            except (LinkClosed, msgspec.DecodeError) as error:
                self._faults[node] = str(error)
        return heard

    def _refuse(self) -> None:
        try:
            connection = self._listener.accept()[0]
            Link(connection).put(Kind.REFUSED, _COMPLETE)
        except (OSError, LinkClosed):
            return
        self._refused.append(connection)  # closed at once, it would lose the message


class Answers:
    """An agent's side: answers node 0, in a thread."""

    def __init__(self, link: Link, seen: Callable[[], list[RankState]]) -> None:
        self.end = ""  # how the link has ended
        self._link = link
        self._seen = seen
        self._thread = threading.Thread(target=self._run, name="node", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """From here on `seen` is not called. May be called again."""
        self._link.shut()
        self._thread.join()
        self._link.close()

    def _run(self) -> None:
        try:
            while True:
                self._link.wait(60.0)
                for _ in self._link.frames():
                    self._link.put(
                        Kind.STATES, msgspec.msgpack.encode(Signs(time.monotonic(), self._seen()))
                    )
        except LinkClosed as closed:
            self.end = str(closed)


def _life_of(peer: Peer) -> Link:
    assert peer.life is not None
    return peer.life


def _translated(signs: Signs) -> list[RankState]:
    """The states, in the time of this machine."""
    shift_s = time.monotonic() - signs.now_s
    return [
        replace(
            state,
            beat_s=state.beat_s and state.beat_s + shift_s,
            since_s=state.since_s + shift_s,
            answering_since_s=state.answering_since_s + shift_s,
            collective_since_s=state.collective_since_s + shift_s,
        )
        for state in signs.states
    ]
