"""Balance: which of several cores gets a request."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from vllm.config.vllm import VllmConfig
from vllm.core.kv_cache.prefix import prompt_hashes
from vllm.engine.cache_view import BlockName, CacheView, block_names
from vllm.messages.engine import EngineReady, EngineRequest, EngineStats, StepUpdates

# What a token that has to be computed weighs, against a pending one. It delays this request and
# those that come later, and takes the room of a token that is cached. In benchmarks/balance.py the
# factor of 2 halves the time to the first token of questions about documents; 4 does no better.
COMPUTED_WEIGHT: Final = 2
# A request that has not ended makes all steps of its core longer, by about as much as a token of a
# prompt each, for some hundred steps. In benchmarks/balance.py with 0, requests that begin with one
# long text crowd on the core that has it cached; with 2000, conversations leave their caches.
OPEN_TOKENS: Final = 400
WAITING_ROWS: Final = 4


class Choice(NamedTuple):
    """Where a request goes."""

    core: int
    num_uncached: int  # prompt tokens that the core will compute, as far as is known


@dataclass(frozen=True, slots=True)
class _Sent:
    """A request that has not drawn a token, as far as is known here."""

    request_id: str
    core: int
    number: int  # of the requests sent to the core, from 1
    num_uncached: int


class CoreLoad:
    """Load of a core: its last statistics, and requests of this front end that came after them.

    The core counts the requests that it has had, and so tells which ones its statistics reflect.
    """

    def __init__(self, index: int, num_blocks: int) -> None:
        self.index = index
        self.cache = CacheView(num_blocks)
        self.num_placed = 0  # requests ever
        self.clear()

    def clear(self) -> None:
        """The core has started anew."""
        self.cache.clear()
        self.stats = EngineStats()
        self._on_way: deque[_Sent] = deque()  # not in `stats`
        self._tokens_on_way = 0
        self._num_sent = 0
        self._num_taken = 0  # by the core, with those that it did not count
        self._num_uncounted = 0  # requests that the core could not read

    @property
    def num_waiting(self) -> int:
        return self.stats.num_waiting + len(self._on_way)

    @property
    def num_open(self) -> int:
        return self.stats.num_running + self.num_waiting

    @property
    def num_pending_tokens(self) -> int:
        """Prompt tokens to compute, of requests of all front ends."""
        return self.stats.num_pending_tokens + self._tokens_on_way

    def add(self, request_id: str, num_uncached: int) -> _Sent:
        self.num_placed += 1
        self._num_sent += 1
        sent = _Sent(request_id, self.index, self._num_sent, num_uncached)
        self._on_way.append(sent)
        self._tokens_on_way += num_uncached
        return sent

    def withdraw(self, sent: _Sent) -> None:
        """The request was not sent after all."""
        self.num_placed -= 1
        if sent.number == self._num_sent:
            self._drop(sent)
            self._num_sent -= 1
        else:
            self.end(sent)

    def reflect(self, stats: EngineStats, num_taken: int) -> None:
        """Statistics of when the core had so many of the requests sent to it."""
        self.stats = stats
        self._num_taken = max(self._num_taken, num_taken + self._num_uncounted)
        while self._on_way and self._on_way[0].number <= self._num_taken:
            self._tokens_on_way -= self._on_way.popleft().num_uncached

    def end(self, sent: _Sent) -> None:
        """The request drew its first token, or ended. If it was not taken before, it never is."""
        if sent.number > self._num_taken:
            self._drop(sent)
            self._num_uncounted += 1

    def _drop(self, sent: _Sent) -> None:
        self._on_way.remove(sent)
        self._tokens_on_way -= sent.num_uncached


class Prompt(NamedTuple):
    """What the choice of a core depends on."""

    num_tokens: int
    names: Sequence[BlockName] = ()  # of the blocks that it fills
    num_reusable: int = 0  # of these: at least one token of a prompt is computed


class Balance(ABC):
    """Owner of what a front end knows of its cores. One thread may place, and another update."""

    def __init__(self, num_blocks: Sequence[int], block_size: int) -> None:
        """`num_blocks`: of the KV cache of each core."""
        self.block_size = block_size
        self.cores = [CoreLoad(index, count) for index, count in enumerate(num_blocks)]
        self._lock = threading.Lock()
        self._waiting: dict[str, _Sent] = {}

    def read(self, request: EngineRequest) -> Prompt:
        """What `place` needs of a request. It takes longest, and waits for nothing."""
        return Prompt(len(request.prompt_token_ids))

    def place(
        self, request: EngineRequest, usable: Collection[int], prompt: Prompt | None = None
    ) -> Choice:
        """Choose a core for a request, which is sent to it next. `withdraw` it if it is not.

        `usable` are the cores that may be chosen, at least one. `request.core` comes before them.
        `prompt`: of `read`, where it was called before.
        """
        if prompt is None:
            prompt = self.read(request)
        with self._lock:
            if request.core is not None:
                core = self.cores[request.core]
            else:
                cores = [self.cores[index] for index in usable]
                core = min(cores, key=lambda core: self._order(core, prompt))
            num_uncached = self._num_uncached(core, prompt)
            self._waiting[request.request_id] = core.add(request.request_id, num_uncached)
            core.cache.expect(request.request_id, prompt.names)
        return Choice(core.index, num_uncached)

    def withdraw(self, request_id: str) -> None:
        """A request that was placed could not be sent."""
        with self._lock:
            sent = self._waiting.pop(request_id, None)
            if sent is not None:
                core = self.cores[sent.core]
                core.withdraw(sent)
                core.cache.settle(request_id)

    def update(self, step: StepUpdates) -> None:
        """Take note of a message of a core: its load, its cache, and what became of requests.

        All messages must come here, in order.
        """
        with self._lock:
            core = self.cores[step.core]
            core.reflect(step.stats, step.num_taken)
            if step.news is not None:
                core.cache.learn(step.news)
            if not self._waiting:
                return
            for update in step.updates:
                if update.token_ids or update.finish_reason is not None:
                    self._settle(core, update.request_id)

    def _settle(self, core: CoreLoad, request_id: str) -> None:
        sent = self._waiting.get(request_id)
        if sent is not None and sent.core == core.index:
            del self._waiting[request_id]
            core.end(sent)
            core.cache.settle(request_id)

    def reset(self, core: int) -> None:
        """A core has started anew, with an empty cache and without requests."""
        with self._lock:
            self.cores[core].clear()
            self._waiting = {
                request_id: sent for request_id, sent in self._waiting.items() if sent.core != core
            }

    def _num_uncached(self, core: CoreLoad, prompt: Prompt) -> int:
        num_found = core.cache.num_found(prompt.names, prompt.num_reusable)
        return prompt.num_tokens - num_found * self.block_size

    @abstractmethod
    def _order(self, core: CoreLoad, prompt: Prompt) -> tuple[int, ...]:
        """The core whose order is lowest gets the request."""


class FirstDone(Balance):
    """The core that has the fewest tokens to compute before the request draws its first token.

    Tokens of the request itself have COMPUTED_WEIGHT. A request that has not ended counts as
    `open_tokens` tokens of a prompt besides.
    """

    def __init__(
        self, num_blocks: Sequence[int], block_size: int, open_tokens: int = OPEN_TOKENS
    ) -> None:
        super().__init__(num_blocks, block_size)
        self._open_tokens = open_tokens

    def _order(self, core: CoreLoad, prompt: Prompt) -> tuple[int, ...]:
        num_open = core.num_open
        num_tokens = (
            core.num_pending_tokens
            + num_open * self._open_tokens
            + self._num_uncached(core, prompt) * COMPUTED_WEIGHT
        )
        return num_tokens, num_open, core.num_placed, core.index


class CacheBalance(FirstDone):
    """FirstDone, where a core computes what it has not cached, and will not have by then.

    So a request goes where its prefix is, unless that core is behind by more than the prefix saves.
    """

    _last: tuple[list[int], str | None, list[BlockName]] | None = None

    def read(self, request: EngineRequest) -> Prompt:
        token_ids, salt = request.prompt_token_ids, request.cache_salt
        # Several sequences of one prompt come one after the other.
        if self._last is not None and self._last[0] is token_ids and self._last[1] == salt:
            names = self._last[2]
        else:
            names = block_names(prompt_hashes(token_ids, self.block_size, salt))
            self._last = token_ids, salt, names
        # A prompt whose every position has an output is computed as a whole.
        is_reusable = request.params.prompt_logprobs is None
        num_reusable = (len(token_ids) - 1) // self.block_size if is_reusable else 0
        return Prompt(len(token_ids), names, num_reusable)


class LeastLoaded(Balance):
    """The core with the fewest requests, of which one that waits counts as WAITING_ROWS."""

    def _order(self, core: CoreLoad, prompt: Prompt) -> tuple[int, ...]:
        num_rows = WAITING_ROWS * core.num_waiting + core.stats.num_running
        return num_rows, core.num_placed, core.index


def make_balance(config: VllmConfig, cores: Sequence[EngineReady]) -> Balance:
    """The rule of --data-parallel-balance for cores that are up."""
    num_blocks = [core.num_blocks for core in cores]
    block_size = cores[0].block_size
    if config.parallel.data_parallel_balance == "least-loaded":
        return LeastLoaded(num_blocks, block_size)
    if config.cache.enable_prefix_caching and all(num_blocks):
        return CacheBalance(num_blocks, block_size)
    return FirstDone(num_blocks, block_size)
