"""What runs on every node but the first: starts the node's ranks, and passes bytes on."""

from __future__ import annotations

import select
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from vllm.distributed.place import Place
from vllm.errors import ConfigError, EngineDeadError
from vllm.executor.base import ExecutorDied
from vllm.executor.local_ranks import LocalRanks
from vllm.executor.nodes.life import Answers
from vllm.executor.nodes.link import Kind, LinkClosed
from vllm.executor.nodes.meeting import Nodes, join
from vllm.executor.nodes.ranks import own_places
from vllm.executor.ranks import RankMain
from vllm.executor.stopwatch import Stopwatch
from vllm.logger import init_logger
from vllm.messages.rank import Joined

logger = init_logger(__name__)

_TICK_S: Final = 0.5
_LAST_WORDS_S: Final = 5.0  # for node 0 to read why


class Agent:
    """The ranks of one node, on behalf of node 0."""

    def __init__(
        self, main: RankMain, ranks: LocalRanks, places: Sequence[Place], nodes: Nodes
    ) -> None:
        """`places` are those of all nodes; `ranks` has not been started."""
        self._main = main
        self._ranks = ranks
        self._places = places
        self._nodes = nodes
        self._stopwatch = Stopwatch(_TICK_S)

    def run(self, settings: Joined) -> None:
        """Until node 0 stops the engine.

        Raises ConfigError if the nodes do not meet, and EngineDeadError if a rank of this node or
        node 0 fails. No rank is left.
        """
        self._node_0 = join(self._nodes, settings)
        link = self._node_0.link
        answers, patience_s = None, _LAST_WORDS_S
        try:
            own = own_places(
                self._places, self._nodes.own, self._node_0.rendezvous, self._node_0.address
            )
            answers = Answers(self._node_0.life, self._ranks.seen)
            self._ranks.start(self._main, own, self._look)
            listed = ", ".join(str(place.rank) for place in own)
            logger.info("All nodes have come. This one runs rank %s", listed)
            self._serve(answers)
            logger.info("Node 0 has stopped the engine")
            answers.stop()
            self._ranks.stop()
        except (ExecutorDied, ConfigError) as error:
            self._tell(str(error))
            raise EngineDeadError(str(error)) from None
        except LinkClosed as closed:
            patience_s = 0.0  # nothing is read there any more
            raise EngineDeadError(
                f"node 0 at {self._nodes.at} is lost: {closed}. The ranks of this node are ended"
            ) from None
        except KeyboardInterrupt:
            self._tell("vllm serve was told to end by a signal there")
            raise
        finally:
            if answers is not None:
                answers.stop()
            self._ranks.kill()
            link.finish(patience_s)
            link.close()
            self._node_0.life.close()

    def _serve(self, answers: Answers) -> None:
        """Raises ExecutorDied, LinkClosed, EngineDeadError."""
        link, ranks = self._node_0.link, self._ranks
        poll = select.poll()
        for fd in (link.fileno(), ranks.fileno()):
            poll.register(fd, select.POLLIN)
        while True:
            events = dict(poll.poll(_TICK_S * 1000))
            if not events or ranks.fileno() in events:
                for rank, reply in ranks.ready(0):
                    link.put(Kind.REPLY, reply, rank, self._look)
            if link.fileno() in events:
                for frame in link.frames():
                    if frame.kind is Kind.STOP:
                        return
                    if frame.kind is Kind.KILL:
                        raise EngineDeadError("node 0 has given up the engine: its log says why")
                    ranks.put(frame.payload)
            if self._stopwatch.is_due:
                self._look()
                if answers.end:
                    raise LinkClosed(answers.end)

    def _look(self) -> None:
        self._ranks.states(self._stopwatch.lapse_s())

    def _tell(self, what: str) -> None:
        def give_up() -> None:
            raise LinkClosed("it reads nothing")

        with suppress(LinkClosed):
            self._node_0.link.put(Kind.FAULT, what.encode(), on_wait=give_up)
